/**
 * A server against `generate --prompts`: tokens/s for the same number of prompts, and tokens per second of CPU time of
 * the process. The clients are a program in C (`serve/client.c`), whose CPU time is reported separately. A full server
 * has twice as many clients as `--max-sequences`. It receives `--requests N` in one run and twice as many in another;
 * the difference counts. With 8 clients or one, `generate` has as many sequences at a time. Flags: `--at N,…`
 * (sequences at a time), `--rounds N`, `--tokens N`, `--words N` (minimum of a prompt), `--checkpoint FOLDER`, or
 * `--width olmoe|gpt-oss` for a GGUF file of `--layers N` in `--type Q8_0`, `--core N` (both commands on this core,
 * with one thread). Other flags are passed to both commands.
 */

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { cpuSeconds } from "./large/process.ts";
import { quantizedFile, type WidthName } from "./quantized/file.ts";
import { commandOf, startServer } from "./serve/server.ts";

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
const words = Number(take("--words", "16"));
const sequences = Number(take("--max-sequences", "32"));
const [width, layers, type] = [
  take("--width", ""),
  Number(take("--layers", "3")),
  take("--type", "Q8_0"),
];
const checkpoint = width === ""
  ? take("--checkpoint", path.join(ROOT, "examples/demo-lm"))
  : await quantizedFile({ type, layers, width: width as WidthName });
const at = take("--at", `${sequences},8,1`);
const core = take("--core", "");
const options = core === "" ? {} : { core: Number(core) };
const common = ["--max-context", "256", ...flags];
let calls = 0;

/** Prompts that begin unlike all earlier ones, so that no prefix of them is cached. */
function newPrompts(count: number): string[] {
  const call = calls++;
  return Array.from({ length: count }, (_, i) => {
    const text = Array.from(
      { length: words + i % (2 * words) },
      (_, j) => WORDS[(i * 7 + j * (1 + i % 5)) % WORDS.length],
    );
    return `${call} ${text.join(" ")}`;
  });
}

/** Tokens per second, and per second of CPU time; microseconds of the clients' CPU time per token. */
interface Rate {
  readonly wall: number;
  readonly cpu: number;
  readonly client: number;
}

/** Requests, and how many at a time. */
interface Load {
  readonly count: number;
  readonly at: number;
}

/** New tokens, and the milliseconds and seconds of CPU time that they took. */
interface Made {
  readonly made: number;
  readonly ms: number;
  readonly seconds: number;
  /** Seconds of CPU time of the clients. */
  readonly clientSeconds: number;
}

/** Runs `generate` with new prompts, `at` of them at a time. */
async function generate({ count, at }: Load): Promise<Made> {
  writeFileSync(file, newPrompts(count).join("\n"));
  const before = cpuSeconds(process.pid, { ofChildren: true });
  const out = await outputOf(commandOf([
    ...["generate", checkpoint, "--prompts", file, "--json"],
    ...["-n", `${tokens}`, "--max-sequences", `${at}`],
    ...common,
  ], options));
  const { sequences, timing } = JSON.parse(out) as {
    sequences: { tokens: unknown[] }[];
    timing: { prefillMs: number; decodeMs: number };
  };
  return {
    made: sequences.reduce((n, one) => n + one.tokens.length, 0),
    ms: timing.prefillMs + timing.decodeMs,
    seconds: cpuSeconds(process.pid, { ofChildren: true }) - before,
    clientSeconds: 0,
  };
}

/** Returns the output of a command with an input. */
async function outputOf(
  [command, ...argv]: readonly [string, ...string[]],
  input = "",
): Promise<string> {
  const child = spawn(command, argv, { stdio: ["pipe", "pipe", "inherit"] });
  child.stdin.end(input);
  let out = "";
  child.stdout.setEncoding("utf8").on("data", (text) => out += text);
  await new Promise((resolve) => child.on("close", resolve));
  return out;
}

/** Sends requests to the server, so that `at` run, and if it is then full, as many wait. */
async function ask(
  { count, at, stream = false }: Load & { readonly stream?: boolean },
): Promise<Made> {
  const clients = at === sequences ? 2 * at : at;
  const bodies = newPrompts(count).map((prompt) =>
    JSON.stringify({
      prompt,
      max_tokens: tokens,
      temperature: 0,
      stream,
      ...stream ? { stream_options: { include_usage: true } } : {},
    })
  );
  const before = cpuSeconds(served.pid);
  const { port } = new URL(served.url);
  const out = await outputOf(
    [clientProgram, port, String(clients)],
    bodies.join("\n"),
  );
  const seconds = cpuSeconds(served.pid) - before;
  return { ...JSON.parse(out) as Omit<Made, "seconds">, seconds };
}

/** Returns the rates of the second half of twice as many requests: without loading, and while the batch is full. */
async function rateOf(
  run: (load: Load) => Promise<Made>,
  { count, at }: Load,
): Promise<Rate> {
  const half = await run({ count, at });
  const all = await run({ count: 2 * count, at });
  const made = all.made - half.made;
  return {
    wall: 1000 * made / (all.ms - half.ms),
    cpu: made / (all.seconds - half.seconds),
    client: 1e6 * (all.clientSeconds - half.clientSeconds) / made,
  };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

const folder = mkdtempSync(path.join(tmpdir(), "switchyard-serve-"));
process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
const file = path.join(folder, "prompts.txt");
const clientProgram = path.join(folder, "client");
execFileSync("cc", [
  "-O2",
  fileURLToPath(new URL("serve/client.c", import.meta.url)),
  ...["-o", clientProgram],
]);
const served = await startServer(checkpoint, [
  ...["--max-queue", `${requests}`, "--max-sequences", `${sequences}`],
  ...common,
], options);
/** Rates of `generate` and of a server, by the name of a load. */
const found: { [load: string]: { generate: Rate; [side: string]: Rate }[] } =
  {};
const loads = at.split(",").map(Number).map((at) => ({
  at,
  count: Math.ceil(requests * at / sequences),
}));
for (const stream of [false, true]) await ask({ ...loads[0]!, stream });
for (let round = 0; round < rounds; round++) {
  for (const load of loads) {
    (found[`${load.at} sequences at a time`] ??= []).push({
      generate: await rateOf(generate, load),
      serve: await rateOf(ask, load),
      "serve, streamed": await rateOf(
        (load) => ask({ ...load, stream: true }),
        load,
      ),
    });
  }
}
await served.stop();
for (const [load, rates] of Object.entries(found)) {
  for (const side of Object.keys(rates[0]!)) {
    const texts = (["wall", "cpu"] as const).map((clock) => {
      const values = rates.map((each) => each[side]![clock]);
      const ratios = rates.map((each) =>
        each[side]![clock] / each.generate[clock]
      );
      return `${median(values).toFixed(0)} tokens/s${
        clock === "cpu" ? " of CPU time" : ""
      }, ${median(ratios).toFixed(2)} of generate`;
    });
    const client = median(rates.map((each) => each[side]!.client));
    console.log(
      `${load}, ${side}: ${texts.join("; ")}${
        client > 0 ? `; clients ${client.toFixed(1)} us per token` : ""
      }`,
    );
  }
}
