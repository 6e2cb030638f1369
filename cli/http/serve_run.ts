/** `view --run`: a page that runs its plan in the browser, and the files that it requests. */

import type { ServerResponse } from "node:http";
import { pipeline } from "node:stream/promises";
import type { OpenFile } from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";
import { serveLoopback } from "./loopback.ts";
import { browserModule } from "../page_assets.ts";

/** The files of a checkpoint that a page may read. */
const READ = /^[\w.-]+\.(json|safetensors)$/;

/** Only a cross-origin isolated page can share memory with workers. */
const ISOLATED = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
};

/** Serves a page and the checkpoint in a folder until Ctrl-C, and prints the address. */
export async function serveRun(
  io: CliIo,
  { page, folder, open }: {
    readonly page: string;
    readonly folder: string;
    readonly open: boolean;
  },
): Promise<void> {
  const { files } = io;
  const module = await files.readText(browserModule(io));
  const send = (response: ServerResponse, type: string, text: string) => {
    response.writeHead(200, { ...ISOLATED, "content-type": type }).end(text);
  };
  const { server, address } = await serveLoopback(
    async (path, response, { range }) => {
      if (path === "/") return send(response, "text/html; charset=utf-8", page);
      if (path === "/browser.js") {
        return send(response, "text/javascript; charset=utf-8", module);
      }
      const name = path.replace(/^\/checkpoint\//, "");
      const file = files.join(folder, name);
      if (!READ.test(name) || await files.stat(file) !== "file") {
        response.writeHead(404).end();
        return;
      }
      await sendFile(response, await files.open(file), range);
    },
  );
  await io.out(`Open ${address} (Ctrl-C ends it)\n`);
  if (open) io.browse(address);
  await new Promise<number>((resolve) => io.onInterrupt(resolve));
  server.close();
  server.closeAllConnections();
}

/** Bytes of one read and send. */
const CHUNK = 1 << 16;

/** Sends the requested part of a file while it is read. */
async function sendFile(
  response: ServerResponse,
  file: OpenFile,
  range: string | undefined,
): Promise<void> {
  try {
    const asked = /^bytes=(\d+)-(\d*)$/.exec(range ?? "");
    const start = Number(asked?.[1] ?? 0);
    const end = Math.min(file.size, Number(asked?.[2] || Infinity) + 1);
    if (asked && start >= end) {
      const none = { "content-range": `bytes */${file.size}` };
      response.writeHead(416, none).end();
      return;
    }
    const read = (from: number) => file.read(from, Math.min(CHUNK, end - from));
    // Before the first read, the response can still report a failure.
    const first = await read(start);
    response.writeHead(asked ? 206 : 200, {
      "content-type": "application/octet-stream",
      "content-length": end - start,
      ...asked
        ? { "content-range": `bytes ${start}-${end - 1}/${file.size}` }
        : {},
    });
    await pipeline(async function* () {
      yield first;
      for (let from = start + CHUNK; from < end; from += CHUNK) {
        yield await read(from);
      }
    }, response);
  } finally {
    await file.close();
  }
}
