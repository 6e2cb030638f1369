/**
 * Serves the package on loopback: `node serve.mjs [PORT]`. Any server with byte ranges works. The two headers isolate
 * the page from other origins; browsers share memory only with workers of isolated pages.
 */

import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const SCRIPT = join(ROOT, "dist/browser/mod.js");
const TYPES = { ".html": "text/html", ".js": "text/javascript" };

/** Bundles the script of a clone on request. */
async function bundled() {
  const { bundleBrowser } = await import("../../scripts/bundle.mjs");
  const { outputFiles } = await bundleBrowser(join(ROOT, "dist"));
  return outputFiles[0].contents;
}

/** Answers with a file of the package, or with the requested bytes of it. */
async function answer({ url, headers: { range } }, response) {
  const { pathname } = new URL(url, "http://localhost");
  const file = join(ROOT, normalize(decodeURIComponent(pathname)));
  const headers = {
    "content-type": TYPES[extname(file)] ?? "application/octet-stream",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
  };
  const found = statSync(file, { throwIfNoEntry: false });
  if (file === SCRIPT && existsSync(join(ROOT, "scripts/bundle.mjs"))) {
    const script = await bundled();
    response.writeHead(200, headers).end(script);
  } else if (!found?.isFile()) {
    response.writeHead(404).end();
  } else if (range) {
    const [start, end] = range.replace("bytes=", "").split("-").map(Number);
    const stream = createReadStream(file, { start, end });
    response.writeHead(206, {
      ...headers,
      "content-range": `bytes ${start}-${end}/${found.size}`,
    });
    stream.pipe(response);
  } else {
    response.writeHead(200, headers);
    createReadStream(file).pipe(response);
  }
}

/** Starts the server. Returns it after it listens. Failed requests are answered with 400 and the error. */
export async function serve(port) {
  const server = createServer((request, response) => {
    answer(request, response)
      .catch(({ message }) => response.writeHead(400).end(message));
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return server;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = await serve(Number(process.argv[2] ?? 8080));
  const { port } = server.address();
  console.log(`http://localhost:${port}/examples/browser/index.html`);
}
