/**
 * Memory and connections of a server over many requests: resident memory after each tenth of the requests, the answer
 * to a request while thousands of idle connections are open, and memory after they are closed. Flags: `--requests N`,
 * `--connections N`, `--clients N`; other flags are passed to `serve`.
 */

import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { complete, startServer } from "./serve/server.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const flags = process.argv.slice(2);

/** Removes a flag and returns its value. */
function take(flag: string, otherwise: number): number {
  const at = flags.indexOf(flag);
  return at < 0 ? otherwise : Number(flags.splice(at, 2)[1]);
}

const requests = take("--requests", 10_000);
const connections = take("--connections", 5_000);
const clients = take("--clients", 16);

const server = await startServer(path.join(ROOT, "examples/demo-lm"), [
  ...["--max-context", "128", "--max-sequences", "16", ...flags],
]);
const address = new URL(server.url);

/** Resident memory of the server in MiB. */
function resident(): number {
  const text = readFileSync(`/proc/${server.pid}/status`, "utf8");
  return Number(/VmRSS:\s+(\d+)/.exec(text)![1]) / 1024;
}

async function ask(i: number): Promise<void> {
  await complete(server, {
    prompt: `There were ${i} foxes in the wood`.repeat(1 + i % 4),
    max_tokens: 1 + i % 8,
    seed: i,
    stream: i % 3 === 0,
  });
}

const memory: number[] = [];
let next = 0;
async function client(): Promise<void> {
  while (next < requests) {
    const i = next++;
    await ask(i);
    if ((i + 1) % Math.ceil(requests / 10) === 0) memory.push(resident());
  }
}
await Promise.all(Array.from({ length: clients }, client));
console.log(
  `MiB after each tenth of ${requests} requests: ${
    memory.map((mib) => mib.toFixed(0)).join(" ")
  }`,
);

const sockets: Socket[] = [];
for (let i = 0; i < connections; i++) {
  const socket = connect(Number(address.port), address.hostname);
  socket.on("error", () => {});
  sockets.push(socket);
  // At most so many connect at a time.
  if (i % 100 === 99) {
    await new Promise((resolve) => socket.once("connect", resolve));
  }
}
const open = sockets.filter(({ readyState }) => readyState === "open").length;
const begun = performance.now();
await ask(0);
console.log(
  `with ${open} connections: an answer after ${
    (performance.now() - begun).toFixed(0)
  } ms, ${resident().toFixed(0)} MiB`,
);
for (const socket of sockets) socket.destroy();
await new Promise((resolve) => setTimeout(resolve, 1000));
await ask(0);
console.log(`after they are closed: ${resident().toFixed(0)} MiB`);
await server.stop();
