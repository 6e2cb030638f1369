/**
 * A full server against `generate --prompts`: tokens/s for the same prompts, without loading. Flags: `--rounds N`,
 * `--requests N`, `--tokens N`, `--checkpoint FOLDER`; other flags are passed to both commands.
 */

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const WORDS = "once upon a time there was a king who had a daughter and a fox"
  .split(" ");

const flags = process.argv.slice(2);

/** Removes a flag and returns its value. */
function take(flag: string, otherwise: string): string {
  const at = flags.indexOf(flag);
  return at < 0 ? otherwise : flags.splice(at, 2)[1]!;
}

const rounds = Number(take("--rounds", "5"));
const requests = Number(take("--requests", "256"));
const tokens = Number(take("--tokens", "64"));
const checkpoint = take("--checkpoint", path.join(ROOT, "examples/demo-lm"));
const common = ["--max-sequences", "32", "--max-context", "256", ...flags];
const prompts = Array.from(
  { length: requests },
  (_, i) =>
    Array.from(
      { length: 16 + i % 32 },
      (_, j) => WORDS[(i * 7 + j * (1 + i % 5)) % WORDS.length],
    ).join(" "),
);

/** Starts a command and passes its output to `read`. */
function start(argv: readonly string[], read: (text: string) => void) {
  const child = spawn(
    process.execPath,
    [path.join(ROOT, "bin/switchyard.mjs"), ...argv],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  child.stdout.setEncoding("utf8").on("data", read);
  const ended = new Promise((resolve) => child.on("close", resolve));
  return { child, ended };
}

/** Returns the tokens and seconds of `generate`, without loading. */
async function generate(file: string): Promise<number> {
  let out = "";
  const { ended } = start([
    ...["generate", checkpoint, "--prompts", file, "--json", "--stats"],
    ...["-n", `${tokens}`, ...common],
  ], (text) => out += text);
  await ended;
  const { sequences, timing } = JSON.parse(out) as {
    sequences: { tokens: unknown[] }[];
    timing: { prefillMs: number; decodeMs: number };
  };
  const count = sequences.reduce((n, one) => n + one.tokens.length, 0);
  return 1000 * count / (timing.prefillMs + timing.decodeMs);
}

/** Returns tokens/s for requests that are all sent at once. */
async function ask(
  address: string,
  { stream = false, at = requests } = {},
): Promise<number> {
  const begun = performance.now();
  let count = 0;
  const waiting = [...prompts];
  const client = async () => {
    for (let prompt; (prompt = waiting.shift()) !== undefined;) {
      const response = await fetch(`${address}/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({
          prompt,
          max_tokens: tokens,
          temperature: 0,
          stream,
          ...stream ? { stream_options: { include_usage: true } } : {},
        }),
      });
      const text = await response.text();
      const [, used] = /"completion_tokens":(\d+)/.exec(text) ?? [];
      count += Number(used);
    }
  };
  await Promise.all(Array.from({ length: at }, client));
  return 1000 * count / (performance.now() - begun);
}

/** A listening server. */
async function startServer() {
  let listens: (address: string) => void;
  const url = new Promise<string>((resolve) => listens = resolve);
  const server = start([
    ...["serve", checkpoint, "--port", "0", "--max-queue", `${requests}`],
    ...common,
  ], (text) => {
    const [found] = /http:\S+/.exec(text) ?? [];
    if (found) listens(found);
  });
  return { server, url: await url };
}

function note(name: string, value: number): void {
  (found[name] ??= []).push(value);
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

const folder = mkdtempSync(path.join(tmpdir(), "switchyard-serve-"));
const file = path.join(folder, "prompts.txt");
writeFileSync(file, prompts.join("\n"));
const { server, url } = await startServer();
const found: { [name: string]: number[] } = {};
await ask(url);
for (let round = 0; round < rounds; round++) {
  note("generate --prompts", await generate(file));
  note("serve", await ask(url));
  note("serve, streamed", await ask(url, { stream: true }));
  note("serve, 8 clients", await ask(url, { at: 8 }));
  note("serve, 1 client", await ask(url, { at: 1 }));
}
server.child.kill("SIGTERM");
await server.ended;
rmSync(folder, { recursive: true });
const base = found["generate --prompts"]!;
for (const [name, values] of Object.entries(found)) {
  const ratio = median(values.map((value, i) => value / base[i]!));
  console.log(
    `${name}: ${median(values).toFixed(0)} tokens/s, ${
      ratio.toFixed(2)
    } of generate`,
  );
}
