/**
 * A full server against `generate --prompts`: tokens/s for the same prompts, without loading, and tokens per second of
 * CPU time of the process, which excludes the client. Flags: `--rounds N`, `--requests N`, `--tokens N`, `--checkpoint
 * FOLDER`; other flags are passed to both commands.
 */

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { cpuSeconds } from "./large/process.ts";

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
let calls = 0;

/** Prompts that begin unlike all earlier ones, so that no prefix of them is cached. */
function newPrompts(): string[] {
  const call = calls++;
  return Array.from({ length: requests }, (_, i) => {
    const words = Array.from(
      { length: 16 + i % 32 },
      (_, j) => WORDS[(i * 7 + j * (1 + i % 5)) % WORDS.length],
    );
    return `${call} ${words.join(" ")}`;
  });
}

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

/** Tokens per second, and per second of CPU time. */
interface Rate {
  readonly wall: number;
  readonly cpu: number;
}

/** Runs `generate`, and returns its rates without loading: `loading` is the CPU time of a run with one token. */
async function generate(
  file: string,
  { loading = 0, argv = ["-n", `${tokens}`] } = {},
): Promise<Rate & { readonly seconds: number }> {
  let out = "";
  const before = cpuSeconds(process.pid, { ofChildren: true });
  const { ended } = start([
    ...["generate", checkpoint, "--prompts", file, "--json", "--stats"],
    ...[...argv, ...common],
  ], (text) => out += text);
  await ended;
  const { sequences, timing } = JSON.parse(out) as {
    sequences: { tokens: unknown[] }[];
    timing: { prefillMs: number; decodeMs: number };
  };
  const count = sequences.reduce((n, one) => n + one.tokens.length, 0);
  const seconds = cpuSeconds(process.pid, { ofChildren: true }) - before;
  return {
    wall: 1000 * count / (timing.prefillMs + timing.decodeMs),
    cpu: count / (seconds - loading),
    seconds,
  };
}

/** Returns the rates of a server for requests that are all sent at once. */
async function ask(
  { url, pid }: { readonly url: string; readonly pid: number },
  { stream = false, at = requests } = {},
): Promise<Rate> {
  const waiting = newPrompts();
  const begun = performance.now();
  const before = cpuSeconds(pid);
  let count = 0;
  const client = async () => {
    for (let prompt; (prompt = waiting.shift()) !== undefined;) {
      const response = await fetch(`${url}/completions`, {
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
  return {
    wall: 1000 * count / (performance.now() - begun),
    cpu: count / (cpuSeconds(pid) - before),
  };
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
  return { server, url: await url, pid: server.child.pid! };
}

function note(name: string, value: Rate): void {
  (found[name] ??= []).push(value);
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

const folder = mkdtempSync(path.join(tmpdir(), "switchyard-serve-"));
const file = path.join(folder, "prompts.txt");
writeFileSync(file, WORDS[0]!);
const { seconds: loading } = await generate(file, { argv: ["-n", "1"] });
const served = await startServer();
const found: { [name: string]: Rate[] } = {};
await ask(served);
for (let round = 0; round < rounds; round++) {
  writeFileSync(file, newPrompts().join("\n"));
  note("generate --prompts", await generate(file, { loading }));
  note("serve", await ask(served));
  note("serve, streamed", await ask(served, { stream: true }));
  note("serve, 8 clients", await ask(served, { at: 8 }));
  note("serve, 1 client", await ask(served, { at: 1 }));
}
served.server.child.kill("SIGTERM");
await served.server.ended;
rmSync(folder, { recursive: true });
const base = found["generate --prompts"]!;
for (const [name, rates] of Object.entries(found)) {
  const texts = (["wall", "cpu"] as const).map((clock) => {
    const values = rates.map((rate) => rate[clock]);
    const ratio = median(values.map((value, i) => value / base[i]![clock]));
    return `${median(values).toFixed(0)} tokens/s${
      clock === "cpu" ? " of CPU time" : ""
    }, ${ratio.toFixed(2)} of generate`;
  });
  console.log(`${name}: ${texts.join("; ")}`);
}
