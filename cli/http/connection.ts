/** Connections over HTTP/1.1. */

import { Buffer } from "node:buffer";
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Connection } from "../../engine/server/mod.ts";

/** Creates the connection of a request. */
export function createConnection(
  { incoming, outgoing, sent }: {
    readonly incoming: IncomingMessage;
    readonly outgoing: ServerResponse;
    readonly sent: Response;
  },
): Connection {
  return {
    sent,
    get closed() {
      return outgoing.destroyed;
    },
    read: (maxBytes) => read(incoming, maxBytes),
    send: (text, headers) => {
      const length = Buffer.byteLength(text);
      outgoing.writeHead(200, { ...headers, "content-length": length });
      outgoing.end(text);
    },
    begin: (headers) => {
      outgoing.writeHead(200, headers);
      outgoing.flushHeaders();
    },
    write: (text) => outgoing.write(text),
    drained: async (signal) => {
      // Also rejects if writing fails: then the response is closed.
      await once(outgoing, "drain", { signal }).catch(() => {});
    },
    end: () => void outgoing.end(),
    abort: (error) => void outgoing.destroy(error),
    onLeave: (action) => {
      const left = () => {
        if (!outgoing.writableFinished) action();
      };
      outgoing.once("close", left);
      return () => outgoing.off("close", left);
    },
  };
}

async function read(
  incoming: IncomingMessage,
  maxBytes: number,
): Promise<Uint8Array | "too large" | "closed"> {
  if (Number(incoming.headers["content-length"] ?? 0) > maxBytes) {
    return "too large";
  }
  const parts: Uint8Array[] = [];
  let size = 0;
  return await new Promise((resolve) => {
    const add = (part: Uint8Array) => {
      size += part.length;
      if (size <= maxBytes) return parts.push(part);
      incoming.off("data", add);
      incoming.pause();
      resolve("too large");
    };
    incoming.on("data", add);
    incoming.once("end", () => resolve(Buffer.concat(parts)));
    incoming.once("close", () => resolve("closed"));
    incoming.on("error", () => {});
  });
}
