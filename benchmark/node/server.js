// HTTP, echo and broadcast by Node's own modules: node server.js <workload> <port>
'use strict';

const http = require('node:http');
const net = require('node:net');

const HELLO = Buffer.from('Hello, World!');
// Bytes that may wait for a client that reads slowly.
const MOST_WAITING = 1024 * 1024;
const LONGEST_LINE = 64 * 1024;

function httpServer() {
  const server = http.createServer((request, response) => {
    if (request.method === 'GET' && request.url === '/hello') {
      response.writeHead(200, {
        'Content-Type': 'text/plain; charset=utf-8',
        'Content-Length': HELLO.length,
      });
      response.end(HELLO);
    } else if (request.method === 'POST' && request.url === '/echo') {
      const pieces = [];
      request.on('data', (piece) => pieces.push(piece));
      request.on('end', () => {
        const body = Buffer.concat(pieces);
        response.writeHead(200, {
          'Content-Type': 'application/octet-stream',
          'Content-Length': body.length,
        });
        response.end(body);
      });
    } else {
      response.writeHead(404).end();
    }
  });
  // Otherwise an idle connection is closed after 5 s, which a client may take for an error.
  server.keepAliveTimeout = 60000;
  return server;
}

function echoServer() {
  return net.createServer({ noDelay: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    // Reads no more from a client that does not read.
    socket.pipe(socket);
  });
}

function broadcastServer() {
  const clients = new Set();
  let counted = 0;

  function publish(from, line) {
    for (const socket of clients) {
      if (socket === from) continue;
      socket.write(line);
      if (socket.writableLength > MOST_WAITING) socket.destroy();
    }
  }

  return net.createServer({ noDelay: true }, (socket) => {
    counted += 1;
    const prefix = Buffer.from(`[Client_${counted}] `);
    let begun = Buffer.alloc(0);
    clients.add(socket);
    socket.on('close', () => clients.delete(socket));
    socket.on('error', () => socket.destroy());
    socket.on('data', (data) => {
      let rest = begun.length > 0 ? Buffer.concat([begun, data]) : data;
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
        publish(socket, Buffer.concat([prefix, rest.subarray(0, end + 1)]));
        rest = rest.subarray(end + 1);
      }
      begun = rest;
      if (begun.length > LONGEST_LINE) socket.destroy();
    });
  });
}

const servers = { http: httpServer, echo: echoServer, broadcast: broadcastServer };
const [workload, port] = process.argv.slice(2);
if (!Object.hasOwn(servers, workload) || !/^[0-9]+$/.test(port)) {
  console.error('usage: server.js http|echo|broadcast <port>');
  process.exit(2);
}
servers[workload]().listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
