/** Listens at a port for the routes of a server. */

import { createAdaptorServer } from "@hono/node-server";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { MachineError } from "../spec/mod.ts";

/** Milliseconds in which the headers of a request, and all of it, must arrive. */
const [HEADERS_MS, REQUEST_MS] = [20_000, 60_000];

/** Milliseconds for which a connection without a request is kept open. */
const KEEP_ALIVE_MS = 30_000;

/** Milliseconds between looks at which connections are idle. */
const LOOK_MS = 20;

/** Where to listen, and for how long connections may be silent. */
export interface ListenOptions {
  readonly host: string;
  /** 0: any that is free. */
  readonly port: number;
  /** Milliseconds without a byte in either direction after which a connection is closed. */
  readonly silentMs: number;
}

/** Listens. Throws MachineError if the port cannot be used. */
export async function listen(
  fetch: (request: Request) => Response | Promise<Response>,
  { host, port, silentMs }: ListenOptions,
): Promise<{ readonly server: Server; readonly address: string }> {
  const server = createAdaptorServer({
    fetch,
    overrideGlobalObjects: false,
  }) as Server;
  server.headersTimeout = HEADERS_MS;
  server.requestTimeout = REQUEST_MS;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  server.timeout = silentMs;
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
  return { server, address: `http://${name}:${bound}` };
}

/** Accepts no more connections, and resolves once the responses of all there are were sent. */
export async function closeServer(server: Server): Promise<void> {
  const timer = setInterval(() => server.closeIdleConnections(), LOOK_MS);
  await new Promise((resolve) => server.close(resolve));
  clearInterval(timer);
}
