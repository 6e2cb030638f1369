/** Pages that this process serves to the user's own browser. */

import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";

/** Answers a GET for a path. */
export type Answer = (
  path: string,
  response: ServerResponse,
  headers: IncomingMessage["headers"],
) => void | Promise<void>;

/** Serve on this machine only, at a port that is free. */
export async function serveLoopback(
  answer: Answer,
): Promise<{ readonly server: Server; readonly address: string }> {
  const server = createServer(async ({ method, url, headers }, response) => {
    // A page of elsewhere whose name was made to lead here has another host.
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
      // What cannot be read is not there for whoever asks; who was sent a part sees that the rest is missing.
      if (response.headersSent) response.destroy();
      else response.writeHead(404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return { server, address: `http://127.0.0.1:${port}/` };
}
