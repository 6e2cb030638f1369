/** A run watched live: a page on loopback, and what happens, as server-sent events. */

import type { ServerResponse } from "node:http";
import { rankPlace } from "../engine/mod.ts";
import { type LiveEvents, livePageHtml } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { serveLoopback } from "./loopback.ts";
import { pageAssets } from "./page_assets.ts";

/** Takes what happens. */
export interface Watch {
  /** Tell those who watch; `event` may be its JSON. */
  send<K extends keyof LiveEvents>(
    kind: K,
    event: LiveEvents[K] | string,
  ): void;
  /** Say how the run ended. On a terminal, those who watch can still look until Ctrl-C. */
  end(text: string): Promise<void>;
}

/** Events of one kind that are kept for those who come late. */
const KEPT = 5000;

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
  const events: string[] = [];
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
      response.write(events.join(""));
      watchers.add(response);
      response.on("close", () => watchers.delete(response));
    } else response.writeHead(404).end();
  });
  // To be watched keeps no process from ending.
  server.unref();
  io.err(`Watch at ${address}`);
  const send: Watch["send"] = (kind, event) => {
    const json = typeof event === "string" ? event : JSON.stringify(event);
    const text = `event: ${kind}\ndata: ${json}\n\n`;
    events.push(text);
    if (events.length > KEPT) events.splice(0, KEPT / 10);
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
