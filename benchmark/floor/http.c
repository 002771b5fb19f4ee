/* The floor of HTTP: a server that does little but the system calls.
 *
 * It looks for the end of each head in what it has read, and for "Connection: close" before that; it parses no more. A
 * head that begins with "P" is taken for POST /echo with a body of 1,024 bytes, any other for GET /hello. The answers are
 * the bytes that `epoll-server http` gives, but for a Date that stands still; those to all requests that one read brings
 * leave with one send. A client that does not read is disconnected once its socket is full. What a server spends beyond
 * this is what it adds to the kernel's work.
 *
 * Build and usage: loop.h
 */
#include "loop.h"

#define BODY 1024
#define DATE "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
#define TEXT "Content-Type: text/plain; charset=utf-8\r\n\r\nHello, World!"
#define BYTES "Content-Type: application/octet-stream\r\n\r\n"

static const char hello[] = DATE "Content-Length: 13\r\n" TEXT;
static const char last_hello[] = DATE "Content-Length: 13\r\nConnection: close\r\n" TEXT;
static const char echo[] = DATE "Content-Length: 1024\r\n" BYTES;
static const char last_echo[] = DATE "Content-Length: 1024\r\nConnection: close\r\n" BYTES;

static char input[65536];
static char output[65536];
static size_t output_length;

/* The start of a request whose rest has not come; data is NULL when there is none. */
static struct {
    char *data;
    size_t length;
} kept[MOST_DESCRIPTORS];

static void put(const char *data, size_t length) {
    memcpy(output + output_length, data, length);
    output_length += length;
}

/* Says whether the socket has taken it all. */
static int flush(int fd) {
    size_t length = output_length;
    output_length = 0;
    return length == 0 || send(fd, output, length, MSG_NOSIGNAL) == (ssize_t)length;
}

/* Answers the requests of the first `length` bytes of input; returns how many bytes they are, or -1 after the last. */
static ssize_t answer(int fd, size_t length) {
    char *start = input, *limit = input + length, *end;
    while ((end = memmem(start, limit - start, "\r\n\r\n", 4)) != NULL) {
        int is_last = memmem(start, end - start, "\nConnection: close", 18) != NULL;
        if (output_length > sizeof output - 2 * BODY && !flush(fd)) return -1;
        end += 4;
        if (*start == 'P') {
            if (limit - end < BODY) break;
            is_last ? put(last_echo, sizeof last_echo - 1) : put(echo, sizeof echo - 1);
            put(end, BODY);
            end += BODY;
        } else {
            is_last ? put(last_hello, sizeof last_hello - 1) : put(hello, sizeof hello - 1);
        }
        start = end;
        if (is_last) {
            flush(fd);
            return -1;
        }
    }
    return flush(fd) ? start - input : -1;
}

static void end_connection(int fd) {
    free(kept[fd].data);
    kept[fd].data = NULL;
    kept[fd].length = 0;
    close(fd);
}

static void ready(int fd, unsigned events) {
    while (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        size_t length = kept[fd].length;
        size_t room = sizeof input - length;
        ssize_t received = recv(fd, input + length, room, 0);
        if (received < 0 && errno == EAGAIN) return;
        if (received <= 0) return end_connection(fd);
        if (length > 0) {
            memcpy(input, kept[fd].data, length);
            free(kept[fd].data);
            kept[fd].data = NULL;
            kept[fd].length = 0;
        }
        length += received;
        ssize_t answered = answer(fd, length);
        /* A head that fills the buffer never ends. */
        if (answered < 0 || length - answered == sizeof input) return end_connection(fd);
        if ((size_t)answered < length) {
            kept[fd].length = length - answered;
            kept[fd].data = malloc(kept[fd].length);
            if (kept[fd].data == NULL) fail("malloc");
            memcpy(kept[fd].data, input + answered, kept[fd].length);
        }
        /* A read shorter than its room has emptied the socket, unless the peer has closed. */
        if ((size_t)received < room && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))) return;
    }
}

static void opened(int fd) { (void)fd; }

int main(int argc, char **argv) { return run(argc, argv, "http", opened, ready); }
