/** A run watched live: a page on loopback, and what happens, as server-sent events. */

import type { ServerResponse } from "node:http";
import { rankPlace } from "../engine/mod.ts";
import { follow, type LiveEvents, NOTHING } from "../view/live.ts";
import { livePageHtml } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { serveLoopback } from "./loopback.ts";
import { pageAssets } from "./page_assets.ts";

/** Takes what happens. */
export interface Watch {
  /** Report an event to those who watch. */
  send<K extends keyof LiveEvents>(kind: K, event: LiveEvents[K]): void;
  /** Say how the run ended. On a terminal, those who watch can still look until Ctrl-C. */
  end(text: string): Promise<void>;
}

/** Bytes that somebody who does not read may have waiting; then they are cut off, and come again. */
const WAITING = 1 << 20;

/** Nobody watches. */
const NOBODY: Watch = { send: () => {}, end: () => Promise.resolve() };

/** Serve the page of a run, where `--watch` asks for it and on rank 0 only, and say where it is. */
export async function startWatch(
  io: CliIo,
  title: string,
  { watch }: { readonly watch?: boolean },
): Promise<Watch> {
  if (!watch || (rankPlace()?.rank ?? 0) > 0) return NOBODY;
  const page = livePageHtml({ title }, await pageAssets(io));
  // Not the events themselves: loads of experts of all steps are many bytes.
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
  // To be watched keeps no process from ending.
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
        await new Promise<void>((resolve) => io.onInterrupt(resolve));
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

/** An event as a browser reads it. */
function eventText(kind: keyof LiveEvents, event: object): string {
  return `event: ${kind}\ndata: ${JSON.stringify(event)}\n\n`;
}
