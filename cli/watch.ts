/** A live view of a run: a page on loopback that receives server-sent events. */

import type { ServerResponse } from "node:http";
import { rankIdentity } from "../engine/mod.ts";
import { follow, type LiveEvents, NOTHING } from "../view/live.ts";
import { livePageHtml } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { serveLoopback } from "./http/loopback.ts";
import { pageAssets } from "./page_assets.ts";

/** Receives the events of a run. */
export interface Watch {
  /** Reports an event to all viewers. */
  send<K extends keyof LiveEvents>(kind: K, event: LiveEvents[K]): void;
  /** Reports the end of the run. On a terminal, viewers stay connected until Ctrl-C. */
  end(text: string): Promise<void>;
}

/** Maximum unread bytes of a viewer. Above it, the viewer is disconnected and reconnects. */
const WAITING = 1 << 20;

/** A watch without viewers. */
const NOBODY: Watch = { send: () => {}, end: () => Promise.resolve() };

/** Serves the page of a run if `--watch` requests it, on rank 0 only, and prints its address. */
export async function startWatch(
  io: CliIo,
  title: string,
  { watch }: { readonly watch?: boolean },
): Promise<Watch> {
  if (!watch || (rankIdentity()?.rank ?? 0) > 0) return NOBODY;
  const page = livePageHtml({ title }, await pageAssets(io));
  // The state is kept instead of the events: the expert loads of all steps are large.
  let state = NOTHING;
  const watchers = new Set<ServerResponse>();
  const { server, address } = await serveLoopback((path, response) => {
    if (path === "/") {
      response.writeHead(200, { "content-type": "text/html; charset=utf-8" })
        .end(page);
    } else if (path === "/events") {
      response.writeHead(200, {
        "content-type": "text/event-stream",
        "cache-control": "no-store",
      });
      response.write(eventText("state", state));
      watchers.add(response);
      response.on("close", () => watchers.delete(response));
    } else response.writeHead(404).end();
  });
  // The server does not keep the process running.
  server.unref();
  io.err(`Watch at ${address}`);
  const send: Watch["send"] = (kind, event) => {
    state = follow(state, kind, event);
    if (watchers.size === 0) return;
    const text = eventText(kind, event);
    for (const watcher of watchers) {
      if (watcher.writableLength > WAITING) watcher.destroy();
      else watcher.write(text);
    }
  };
  return {
    send,
    async end(text) {
      send("end", { text });
      if (io.terminal) {
        io.err("Done. The page can still be looked at; Ctrl-C ends it");
        server.ref();
        await new Promise<number>((resolve) => io.onInterrupt(resolve));
      }
      const reported = [...watchers].map((watcher) =>
        new Promise<void>((resolve) => watcher.end(resolve))
      );
      await Promise.all(reported);
      server.close();
      server.closeAllConnections();
    },
  };
}

/** Formats an event for a browser. */
function eventText(kind: keyof LiveEvents, event: object): string {
  return `event: ${kind}\ndata: ${JSON.stringify(event)}\n\n`;
}
