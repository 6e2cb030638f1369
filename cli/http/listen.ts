/** Listens at a port for a server's routes. */

import { getRequestListener } from "@hono/node-server";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import { Buffer } from "node:buffer";
import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
  STATUS_CODES,
} from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import { type Connection, malformedResponse } from "../../engine/server/mod.ts";
import { MachineError } from "../../spec/mod.ts";
import { type ConnectionLimits, createConnection } from "./connection.ts";

/** Milliseconds until the headers of a request, and the complete request, must have arrived. */
const [HEADERS_MS, REQUEST_MS] = [20_000, 60_000];

/** Milliseconds that a connection without a request stays open. */
const KEEP_ALIVE_MS = 30_000;

/** Milliseconds between checks for idle connections. */
const LOOK_MS = 20;

/** The address, and the limits of connections. */
export interface ListenOptions extends ConnectionLimits {
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
}

/** A server that accepts connections. */
export interface Listening {
  readonly address: string;
  /** Stops accepting connections. Resolves after all responses were sent. */
  close(): Promise<void>;
}

/** Starts to listen. Throws MachineError if the port is not available. */
export async function listen(
  fetch: (
    request: Request,
    connection: Connection,
  ) => Response | Promise<Response>,
  { host, port, ...limits }: ListenOptions,
): Promise<Listening> {
  const answer = getRequestListener((request, bindings) => {
    const incoming = bindings.incoming as IncomingMessage;
    const outgoing = bindings.outgoing as ServerResponse;
    const sent = RESPONSE_ALREADY_SENT;
    return fetch(
      request,
      createConnection({ incoming, outgoing, sent }, limits),
    );
  }, {
    overrideGlobalObjects: false,
    errorHandler: (error) => malformedResponse(error as Error),
  });
  // The listener rejects requests without a host, with a body.
  const server = createServer({ requireHostHeader: false }, answer);
  /** The last response of each connection. */
  const responses = new WeakMap<Duplex, ServerResponse>();
  server.on("clientError", (error, socket) => {
    const response = responses.get(socket);
    const begun = response?.headersSent &&
      !(response.writableFinished && response.req.complete);
    if (socket.writable && !begun) return void reject(error, socket);
    socket.destroy();
  });
  server.headersTimeout = HEADERS_MS;
  server.requestTimeout = REQUEST_MS;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  server.timeout = limits.silentMs;
  /** Connections without a request. */
  const unused = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    unused.add(socket);
    socket.once("close", () => unused.delete(socket));
  });
  server.on("request", ({ socket }, response) => {
    unused.delete(socket);
    responses.set(socket, response);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) =>
      reject(
        new MachineError(
          `Cannot listen on ${host}, port ${port}: ${
            error.code === "EADDRINUSE"
              ? "another program does. Give another --port"
              : `${error.message}. Give another --host or --port`
          }`,
        ),
      ));
    server.listen(port, host, resolve);
  });
  const { port: bound, family } = server.address() as AddressInfo;
  const name = family === "IPv6" ? `[${host}]` : host;
  return {
    address: `http://${name}:${bound}`,
    close: () => close(server, unused),
  };
}

/** Rejects data that is not a request, and closes its connection. */
async function reject(error: Error, socket: Duplex): Promise<void> {
  const response = malformedResponse(error);
  const { status } = response;
  const body = await response.text();
  const lines = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    "connection: close",
    "content-type: application/json",
    `content-length: ${Buffer.byteLength(body)}`,
  ];
  socket.end(`${lines.join("\r\n")}\r\n\r\n${body}`, () => socket.destroy());
}

async function close(
  server: Server,
  unused: ReadonlySet<Socket>,
): Promise<void> {
  const timer = setInterval(() => {
    server.closeIdleConnections();
    // Node.js counts connections as idle only after their first request.
    for (const socket of unused) if (socket.bytesRead === 0) socket.destroy();
  }, LOOK_MS);
  await new Promise((resolve) => server.close(resolve));
  clearInterval(timer);
}
