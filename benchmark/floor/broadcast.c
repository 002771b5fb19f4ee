/* The floor of broadcast: each line to all other clients, as `[Client_<n>] line`, by one send for each line and receiver.
 *
 * This is the plain way, which collects nothing: a sender that writes many lines at once costs as many sends to each
 * receiver, where a server that collects them makes one call. What a receiver's full socket does not take of a line is
 * kept, and lines behind it too, up to MOST_KEPT bytes; then that receiver is disconnected.
 *
 * Build and usage: loop.h
 */
#include "loop.h"

#define LONGEST_LINE 65536
#define MOST_KEPT (1 << 20)

struct client {
    unsigned long number;
    /* Where it is in `clients`. */
    int place;
    /* The start of a line whose end has not come; NULL when there is none. */
    char *line;
    size_t line_length;
    /* Not taken by its socket; NULL when there is nothing. Of MOST_KEPT bytes. */
    char *kept;
    size_t kept_length;
};

static struct client table[MOST_DESCRIPTORS];
/* The descriptors of those that are connected. */
static int clients[MOST_DESCRIPTORS];
static int count;
static unsigned long counted;

static void opened(int fd) {
    table[fd] = (struct client){.number = ++counted, .place = count};
    clients[count++] = fd;
}

static void end_connection(int fd) {
    int place = table[fd].place, last = clients[--count];
    clients[place] = last;
    table[last].place = place;
    free(table[fd].line);
    free(table[fd].kept);
    table[fd] = (struct client){0};
    close(fd);
}

/* Says whether the client may stay. */
static int deliver(int fd, const char *data, size_t length) {
    struct client *client = &table[fd];
    if (client->kept == NULL) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return 0;
        if (sent > 0) {
            data += sent;
            length -= sent;
        }
        if (length == 0) return 1;
        client->kept = malloc(MOST_KEPT);
        if (client->kept == NULL) fail("malloc");
    }
    if (client->kept_length + length > MOST_KEPT) return 0;
    memcpy(client->kept + client->kept_length, data, length);
    client->kept_length += length;
    return 1;
}

/* `line` has its newline. */
static void publish(int from, const char *line, size_t length) {
    static char message[LONGEST_LINE + 64];
    size_t total = sprintf(message, "[Client_%lu] ", table[from].number);
    memcpy(message + total, line, length);
    total += length;
    /* Backwards: the place of one that is disconnected is taken by one that has been served. */
    for (int place = count - 1; place >= 0; place--) {
        int fd = clients[place];
        if (fd != from && !deliver(fd, message, total)) end_connection(fd);
    }
}

/* Says whether the client may stay. */
static int flush(int fd) {
    struct client *client = &table[fd];
    if (client->kept == NULL) return 1;
    ssize_t sent = send(fd, client->kept, client->kept_length, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    client->kept_length -= sent;
    memmove(client->kept, client->kept + sent, client->kept_length);
    if (client->kept_length == 0) {
        free(client->kept);
        client->kept = NULL;
    }
    return 1;
}

static void ready(int fd, unsigned events) {
    static char buffer[2 * LONGEST_LINE];
    struct client *client = &table[fd];
    /* Disconnected since the kernel told. */
    if (client->number == 0) return;
    if ((events & EPOLLOUT) && !flush(fd)) return end_connection(fd);
    while (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        size_t begun = client->line_length;
        size_t room = sizeof buffer - begun;
        ssize_t received = recv(fd, buffer + begun, room, 0);
        if (received < 0 && errno == EAGAIN) return;
        if (received <= 0) return end_connection(fd);
        if (begun > 0) memcpy(buffer, client->line, begun);
        free(client->line);
        client->line = NULL;
        client->line_length = 0;
        char *start = buffer, *limit = buffer + begun + received, *newline;
        while ((newline = memchr(start, '\n', limit - start)) != NULL) {
            if (newline - start > LONGEST_LINE) return end_connection(fd);
            publish(fd, start, newline + 1 - start);
            start = newline + 1;
        }
        if (limit - start > LONGEST_LINE) return end_connection(fd);
        if (start < limit) {
            client->line_length = limit - start;
            client->line = malloc(client->line_length);
            if (client->line == NULL) fail("malloc");
            memcpy(client->line, start, client->line_length);
        }
        /* A read shorter than its room has emptied the socket, unless the peer has closed. */
        if ((size_t)received < room && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))) return;
    }
}

int main(int argc, char **argv) { return run(argc, argv, "broadcast", opened, ready); }
