/** Serves pages to the browser of the user on this machine. */

import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";

/** Answers a GET request for a path. */
export type Answer = (
  path: string,
  response: ServerResponse,
  headers: IncomingMessage["headers"],
) => void | Promise<void>;

/** Serves pages at a free port of the loopback address. */
export async function serveLoopback(
  answer: Answer,
): Promise<{ readonly server: Server; readonly address: string }> {
  const server = createServer(async ({ method, url, headers }, response) => {
    // Rejects a foreign page whose host name was redirected to this address.
    const host = headers.host?.replace(/:\d+$/, "");
    const known = host === "127.0.0.1" || host === "localhost";
    if (!known || method !== "GET") {
      response.writeHead(403).end();
      return;
    }
    try {
      const { pathname } = new URL(url ?? "/", "http://localhost");
      await answer(decodeURIComponent(pathname), response, headers);
    } catch {
      // An unreadable file is reported as missing. After a part was sent, the connection is closed.
      if (response.headersSent) response.destroy();
      else response.writeHead(404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return { server, address: `http://127.0.0.1:${port}/` };
}
