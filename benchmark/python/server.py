"""HTTP, echo and broadcast by asyncio protocols: server.py <workload> <port>

With UVLOOP=1 in the environment the loop is uvloop's (requirements.txt).
"""

import asyncio
import os
import signal
import sys
import time
from email.utils import formatdate

# Bytes that may wait for a client that reads slowly.
MOST_WAITING = 1024 * 1024
LONGEST_LINE = 64 * 1024
HEAD_LIMIT = 64 * 1024
BODY_LIMIT = 1024 * 1024

HELLO = b"Hello, World!"
TEXT = b"text/plain; charset=utf-8"
BYTES = b"application/octet-stream"


class Date:
    """The date, formatted once a second."""

    def __init__(self):
        self.second = 0
        self.text = b""

    def now(self):
        second = int(time.time())
        if second != self.second:
            self.second = second
            self.text = formatdate(second, usegmt=True).encode()
        return self.text


DATE = Date()


class Http(asyncio.Protocol):
    """As much of HTTP/1.1 as the workloads need: a request line, fields, Content-Length, Connection: close."""

    def connection_made(self, transport):
        self.transport = transport
        self.input = b""

    def data_received(self, data):
        rest = self.input + data if self.input else data
        answers = []
        last = False
        while not last:
            end = rest.find(b"\r\n\r\n")
            if end < 0:
                last = len(rest) > HEAD_LIMIT
                break
            request_line, *lines = rest[:end].split(b"\r\n")
            fields = {}
            for line in lines:
                name, _, value = line.partition(b":")
                fields[name.lower()] = value.strip()
            length = fields.get(b"content-length", b"0")
            if b"transfer-encoding" in fields or not length.isdigit() or int(length) > BODY_LIMIT:
                answers.append(self.answer(b"400 Bad Request", TEXT, b"", True))
                last = True
                break
            after = end + 4 + int(length)
            if len(rest) < after:
                break
            last = fields.get(b"connection", b"").lower() == b"close"
            if request_line == b"GET /hello HTTP/1.1":
                answers.append(self.answer(b"200 OK", TEXT, HELLO, last))
            elif request_line == b"POST /echo HTTP/1.1":
                answers.append(self.answer(b"200 OK", BYTES, rest[end + 4 : after], last))
            else:
                answers.append(self.answer(b"404 Not Found", TEXT, b"", last))
            rest = rest[after:]
        self.input = rest
        if answers:
            self.transport.write(b"".join(answers))
        if last:
            self.transport.close()

    @staticmethod
    def answer(status, media_type, body, last):
        return (
            b"HTTP/1.1 %b\r\nDate: %b\r\nContent-Length: %d\r\n%bContent-Type: %b\r\n\r\n%b"
            % (status, DATE.now(), len(body), b"Connection: close\r\n" if last else b"", media_type, body)
        )

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


class Echo(asyncio.Protocol):
    """Every byte back; a client that does not read is not read either."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


class Broadcast(asyncio.Protocol):
    """Each line to all other clients."""

    clients = {}
    counted = 0

    def connection_made(self, transport):
        Broadcast.counted += 1
        self.transport = transport
        self.prefix = b"[Client_%d] " % Broadcast.counted
        self.begun = b""
        self.clients[self] = transport

    def connection_lost(self, _):
        self.clients.pop(self, None)

    def data_received(self, data):
        *lines, self.begun = (self.begun + data).split(b"\n")
        for line in lines:
            self.publish(b"%b%b\n" % (self.prefix, line))
        if len(self.begun) > LONGEST_LINE:
            self.transport.abort()

    def publish(self, line):
        for client, transport in self.clients.items():
            if client is not self:
                transport.write(line)
                if transport.get_write_buffer_size() > MOST_WAITING:
                    transport.abort()


async def serve(protocol, port):
    loop = asyncio.get_running_loop()
    # Ends at once, as the others do.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Both loops set TCP_NODELAY.
    server = await loop.create_server(protocol, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main():
    protocols = {"http": Http, "echo": Echo, "broadcast": Broadcast}
    if len(sys.argv) != 3 or sys.argv[1] not in protocols or not sys.argv[2].isdigit():
        sys.exit("usage: server.py http|echo|broadcast <port>")
    serving = serve(protocols[sys.argv[1]], int(sys.argv[2]))
    if os.environ.get("UVLOOP") == "1":
        import uvloop

        uvloop.run(serving)
    else:
        asyncio.run(serving)


main()
