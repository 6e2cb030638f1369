/**
 * The cost of watching a training: 200 steps of `examples/train/next_byte.ts` plain, with `--watch`, and with `--watch`
 * and its page open in Chromium, interleaved. Also measures the memory of the process and the page at steps 20 and 200.
 * Flags: `--rounds N` (default 9), `--out FILE` (default `bench/results/watch.json`).
 */

import { fork } from "node:child_process";
import { on, once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Browser, Page } from "playwright-core";
import { processIo } from "../cli/io.ts";
import { main } from "../cli/main.ts";
import { openBrowser, openPage } from "../test/helpers/browser.ts";
import { machine, median } from "./measure.ts";
import { timingOf, writeDocument } from "./results.ts";

const STEPS = 200;

/** Steps after which memory is measured. The process waits for the measurement. */
const MEASURED = [20, STEPS];

const SIDES = ["plain", "watched", "page"] as const;
type Side = typeof SIDES[number];

/** A message from the process of a training. */
type Said =
  | { readonly address: string }
  | { readonly step: number; readonly heap: number }
  | { readonly times: readonly number[]; readonly cpuMs: number };

/** Bytes of live objects after a step. */
interface Held {
  readonly step: number;
  readonly process: number;
  readonly page?: number;
  readonly elements?: number;
}

/** One training. */
interface Run {
  /** Milliseconds of a step, the median. */
  readonly ms: number;
  /** Core milliseconds of the process per step, the mean. */
  readonly cpuMs: number;
  readonly held: readonly Held[];
}

/** Runs the training in a separate process. */
async function train(argv: readonly string[]): Promise<void> {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const say = (said: Said) => process.send!(said);
  const times: number[] = [];
  let step = 0, before = performance.now();
  let from = process.cpuUsage(), used = 0;
  const code = await main(["train", "examples/train/next_byte.ts", ...argv], {
    ...processIo(),
    terminal: false,
    err: (line) => {
      const address = /Watch at (\S+)/.exec(line)?.[1];
      if (address !== undefined) say({ address });
      else console.error(line);
    },
    out: async () => {
      if (step >= STEPS) return;
      step++;
      times.push(performance.now() - before);
      if (step === 1 || MEASURED.includes(step)) {
        const { user, system } = process.cpuUsage(from);
        used = (user + system) / 1000;
        collect();
        say({ step, heap: process.memoryUsage().heapUsed });
        await once(process, "message");
      }
      if (MEASURED.includes(step)) from = process.cpuUsage();
      before = performance.now();
    },
  });
  if (code !== 0 || times.length !== STEPS) {
    throw new Error(
      `Cannot train: exit code ${code} after ${times.length} steps.`,
    );
  }
  // Code is still being compiled before the first measurement.
  const timed = times.slice(MEASURED[0]);
  say({ times: timed, cpuMs: used / timed.length });
  process.disconnect();
}

async function heldByPage(page: Page): Promise<Omit<Held, "step" | "process">> {
  const client = await page.context().newCDPSession(page);
  await client.send("HeapProfiler.enable");
  await client.send("HeapProfiler.collectGarbage");
  await client.send("Performance.enable");
  const { metrics } = await client.send("Performance.getMetrics");
  await client.detach();
  const value = (name: string) =>
    metrics.find((metric) => metric.name === name)!.value;
  return { page: value("JSHeapUsedSize"), elements: value("Nodes") };
}

async function run(side: Side, browser: Browser): Promise<Run> {
  const out = mkdtempSync(path.join(tmpdir(), "switchyard-watch-"));
  const child = fork(process.argv[1]!, [
    ...["--once", "--steps", `${STEPS}`, "--out", out, "--json"],
    ...["--adapter", "cpu", ...side === "plain" ? [] : ["--watch"]],
  ]);
  const ended = once(child, "exit");
  const held: Held[] = [];
  let page: Page | undefined;
  let times: readonly number[] = [], cpuMs = 0;
  const messages = on(child, "message", { close: ["disconnect"] });
  for await (const [said] of messages as AsyncIterable<[Said]>) {
    if ("address" in said) {
      if (side === "page") ({ page } = await openPage(browser, said.address));
    } else if ("times" in said) ({ times, cpuMs } = said);
    else {
      const { step, heap } = said;
      // Waits until the page has drawn this step.
      await page?.locator(".facts dd", { hasText: RegExp(`^${step}$`) })
        .waitFor();
      if (MEASURED.includes(step)) {
        const more = page ? await heldByPage(page) : {};
        held.push({ step, process: heap, ...more });
      }
      child.send("on");
    }
  }
  await page?.close();
  await ended;
  if (times.length === 0) {
    throw new Error("Cannot measure: the training failed.");
  }
  rmSync(out, { recursive: true });
  return { ms: median(times), cpuMs, held };
}

async function measure(): Promise<void> {
  const { rounds, out } = parseArgs({
    options: {
      rounds: { type: "string", default: "9" },
      out: {
        type: "string",
        default: fileURLToPath(new URL("results/watch.json", import.meta.url)),
      },
    },
  }).values;
  const browser = await openBrowser();
  const runs: { readonly [S in Side]: Run[] } = {
    plain: [],
    watched: [],
    page: [],
  };
  for (let round = 0; round < Number(rounds); round++) {
    for (const side of SIDES) runs[side].push(await run(side, browser));
  }
  await browser.close();
  const rows = SIDES.map((side) => ({
    side,
    wallClock: compared(runs, side, "ms"),
    cores: compared(runs, side, "cpuMs"),
    held: MEASURED.map((step, i) => {
      const of = runs[side].map(({ held }) => held[i]!);
      const middle = (read: (held: Held) => number | undefined) =>
        Math.round(median(of.map((held) => read(held) ?? 0)));
      return {
        step,
        processBytes: middle(({ process }) => process),
        ...side === "page"
          ? {
            pageBytes: middle(({ page }) => page),
            elements: middle(({ elements }) => elements),
          }
          : {},
      };
    }),
  }));
  for (const row of rows) console.log(JSON.stringify(row));
  writeDocument(out, {
    machine: `${machine()}, other programs beside it`,
    steps: STEPS,
    rows,
  });
}

/** Formats milliseconds per step, absolute and relative to the plain trainings. */
function compared(
  runs: { readonly [S in Side]: readonly Run[] },
  side: Side,
  what: "ms" | "cpuMs",
): object {
  const of = runs[side].map((one) => one[what]);
  const plain = runs.plain.map((one) => one[what]);
  const byRound = of.map((one, round) => one / plain[round]!);
  return {
    stepMs: timingOf(of),
    toPlain: digits(median(of) / median(plain)),
    byRound: [Math.min, Math.max].map((end) => digits(end(...byRound))),
  };
}

function digits(value: number): number {
  return Number(value.toPrecision(4));
}

if (process.argv[2] === "--once") await train(process.argv.slice(3));
else await measure();
