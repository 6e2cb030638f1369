// Requests that are no valid HTTP, and hosts of requests.

import { once } from "node:events";
import { connect } from "node:net";
import { setTimeout } from "node:timers/promises";
import t from "tap";
import { listen } from "../cli/http/listen.ts";

const { address, close } = await listen(async (_, connection) => {
  await connection.read(1000);
  return Response.json("answered");
}, {
  host: "127.0.0.1",
  port: 0,
  silentMs: 60_000,
  sendMs: 60_000,
});
t.teardown(close);

/** Sends data; returns the status and the body of the response. */
async function exchange(data: string): Promise<[number, unknown]> {
  const socket = connect(Number(new URL(address).port), "127.0.0.1");
  let received = "";
  socket.on("data", (part) => received += part);
  socket.write(data);
  await once(socket, "close");
  const [head, body] = received.split("\r\n\r\n");
  return [Number(head!.split(" ")[1]), JSON.parse(body!)];
}

t.test("malformed requests get an error with a body", async (t) => {
  const end = "\r\nConnection: close\r\n\r\n";
  const cases: [string, number, RegExp][] = [
    ["GET / HTTP/1.0\r\n\r\n", 400, /^Cannot read the request: Missing host/],
    [`GET / HTTP/1.1${end}`, 400, /^Cannot read the request: Missing host/],
    [`GET / HTTP/1.1\r\nHost: a b/c${end}`, 400, /Invalid host|Invalid URL/],
    [`GET http://[::z/ HTTP/1.1\r\nHost: a${end}`, 400, /Invalid .*URL/],
    ["HELLO\r\n\r\n", 400, /Parse Error: .*\. Send a valid request of HTTP/],
    [
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      400,
      /Parse Error/,
    ],
    [
      `GET / HTTP/1.1\r\nHost: a\r\nX: ${"a".repeat(40_000)}\r\n\r\n`,
      431,
      /headers are too long/,
    ],
  ];
  for (const [data, status, message] of cases) {
    const name = data.slice(0, 40);
    const [found, body] = await exchange(data);
    t.equal(found, status, name);
    t.match(body, { error: { message, type: "invalid_request_error" } }, name);
  }
  t.strictSame(await exchange(`GET / HTTP/1.1\r\nHost: a${end}`), [
    200,
    "answered",
  ]);
});

t.test("a client that leaves before its body is read leaves no request", async (t) => {
  let left = false;
  let resolve!: (read: unknown) => void;
  const found = new Promise<unknown>((done) => resolve = done);
  const { address, close } = await listen(async (_, connection) => {
    while (!connection.closed) await setTimeout(1);
    connection.onLeave(() => left = true);
    resolve(await connection.read(1000));
    return new Response();
  }, {
    host: "127.0.0.1",
    port: 0,
    silentMs: 60_000,
    sendMs: 60_000,
  });
  const socket = connect(Number(new URL(address).port), "127.0.0.1");
  socket.resume();
  // Node.js closes the connection of a client that ends its sending half.
  socket.end(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
  );
  t.equal(await found, "closed");
  t.equal(left, true);
  await close();
});
