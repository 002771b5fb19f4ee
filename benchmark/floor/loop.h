/* What the three floors have in common: a listener, and edge-triggered epoll on one thread.
 *
 * Each includes this file, and is compiled on its own: cc -O2 -Wall -o http http.c
 * Usage of each: PROGRAM WORKLOAD PORT    (listens on 127.0.0.1; ends at SIGTERM)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Descriptors are indexes of tables; one beyond is not served. */
#define MOST_DESCRIPTORS (1 << 20)

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int listen_on(int port) {
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* Accepted sockets inherit it. */
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
    if (listen(listener, 4096) < 0) fail("listen");
    return listener;
}

static void watch(int epoll, int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
}

static void accept_all(int epoll, int listener, void (*opened)(int fd)) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN) return;
            if (errno == EINTR || errno == ECONNABORTED) continue;
            fail("accept4");
        }
        if (fd >= MOST_DESCRIPTORS) {
            close(fd);
            continue;
        }
        opened(fd);
        watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    }
}

/* Runs for ever. `opened` is called with each new socket, `ready` with each event. Sockets are accepted after the events
 * of a wait are done, so that `ready` may close any of them: no event is left that could reach its successor. */
static int run(int argc, char **argv, const char *workload, void (*opened)(int fd),
               void (*ready)(int fd, unsigned events)) {
    if (argc != 3 || strcmp(argv[1], workload) != 0) {
        fprintf(stderr, "usage: %s %s PORT\n", argv[0], workload);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    int listener = listen_on(atoi(argv[2]));
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) fail("epoll_create1");
    watch(epoll, listener, EPOLLIN | EPOLLET);
    for (;;) {
        static struct epoll_event events[256];
        int accepting = 0;
        int count = epoll_wait(epoll, events, 256, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                accepting = 1;
            else
                ready(events[i].data.fd, events[i].events);
        }
        if (accepting) accept_all(epoll, listener, opened);
    }
}
