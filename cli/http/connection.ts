/** Connections over HTTP/1.1. */

import { Buffer } from "node:buffer";
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Connection } from "../../engine/server/mod.ts";

/** Limits of a connection. */
export interface ConnectionLimits {
  /** Milliseconds without traffic after which a connection is closed. */
  readonly silentMs: number;
  /** Milliseconds after which a connection is closed whose client reads none of the data that waits for it. */
  readonly sendMs: number;
  /** Called if a client reads nothing for `sendMs`. */
  readonly onUnread?: () => void;
}

/** Creates the connection of a request. */
export function createConnection(
  { incoming, outgoing, sent }: {
    readonly incoming: IncomingMessage;
    readonly outgoing: ServerResponse;
    readonly sent: Response;
  },
  { silentMs, sendMs, onUnread }: ConnectionLimits,
): Connection {
  // A socket's timer starts again with each part that the client reads.
  const allow = (ms: number) => incoming.socket.setTimeout(ms);
  outgoing.on("timeout", () => {
    if (outgoing.writableNeedDrain || outgoing.writableEnded) onUnread?.();
    outgoing.destroy();
  });
  outgoing.on("drain", () => allow(silentMs));
  const end = (text: string) => {
    outgoing.end(text);
    if (!outgoing.writableFinished) allow(sendMs);
  };
  return {
    sent,
    get closed() {
      return outgoing.destroyed;
    },
    read: (maxBytes) => read(incoming, maxBytes),
    send: (text, headers) => {
      const length = Buffer.byteLength(text);
      outgoing.writeHead(200, { ...headers, "content-length": length });
      end(text);
    },
    begin: (headers) => {
      outgoing.writeHead(200, headers);
      outgoing.flushHeaders();
    },
    write: (text) => {
      const ready = outgoing.write(text);
      if (!ready) allow(sendMs);
      return ready;
    },
    drained: async (signal) => {
      // Also rejects if writing fails: then the response is closed.
      await once(outgoing, "drain", { signal }).catch(() => {});
    },
    end: () => end(""),
    abort: (error) => void outgoing.destroy(error),
    onLeave: (action) => {
      const left = () => {
        if (!outgoing.writableFinished) action();
      };
      if (outgoing.destroyed) left();
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
  // The client may have left before the route reads, and events are not repeated.
  if (incoming.destroyed) return "closed";
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
