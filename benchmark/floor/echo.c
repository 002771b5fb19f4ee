/* The floor of echo: every byte back, by one recv and one send.
 *
 * What a socket's full buffer does not take is kept, and its client is not read before it has left.
 *
 * Build and usage: loop.h
 */
#include "loop.h"

static char buffer[65536];

static struct {
    /* Received and not sent, from `sent` to `length`; NULL when there is nothing. */
    char *data;
    size_t length, sent;
    /* The peer has closed, or an error waits: the socket is read until it says so. */
    int ending;
} kept[MOST_DESCRIPTORS];

static void end_connection(int fd) {
    free(kept[fd].data);
    memset(&kept[fd], 0, sizeof kept[fd]);
    close(fd);
}

/* Sends what is kept: 1 if all has left, 0 if the socket is full, -1 if it is broken. */
static int flush(int fd) {
    if (kept[fd].data == NULL) return 1;
    size_t length = kept[fd].length - kept[fd].sent;
    ssize_t sent = send(fd, kept[fd].data + kept[fd].sent, length, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? 0 : -1;
    kept[fd].sent += sent;
    if ((size_t)sent < length) return 0;
    free(kept[fd].data);
    kept[fd].data = NULL;
    return 1;
}

static void ready(int fd, unsigned events) {
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) kept[fd].ending = 1;
    /* Only output was waited for: the socket has nothing to read unless it was left unread for that. */
    if (!(events & ~EPOLLOUT) && kept[fd].data == NULL) return;
    for (;;) {
        int flushed = flush(fd);
        if (flushed < 0) return end_connection(fd);
        if (flushed == 0) return;
        ssize_t received = recv(fd, buffer, sizeof buffer, 0);
        if (received < 0 && errno == EAGAIN) return;
        if (received <= 0) return end_connection(fd);
        ssize_t sent = send(fd, buffer, received, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return end_connection(fd);
        if (sent < 0) sent = 0;
        if (sent < received) {
            kept[fd].sent = 0;
            kept[fd].length = received - sent;
            kept[fd].data = malloc(kept[fd].length);
            if (kept[fd].data == NULL) fail("malloc");
            memcpy(kept[fd].data, buffer + sent, kept[fd].length);
            continue;
        }
        /* A read shorter than the buffer has emptied the socket, unless the peer has closed. */
        if ((size_t)received < sizeof buffer && !kept[fd].ending) return;
    }
}

static void opened(int fd) { (void)fd; }

int main(int argc, char **argv) { return run(argc, argv, "echo", opened, ready); }
