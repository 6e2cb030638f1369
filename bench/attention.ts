/**
 * Attention alone, with 16 heads of 64 and 4 heads of keys: time per token of prefills from 256 to 4096 tokens, and of
 * a decode step after them. Each tuning of `--tunings JSON` (default: the device's) is measured, interleaved. Flags:
 * `--adapter native|cpu|NUMBER` (default: native), `--runs N`.
 */

import process from "node:process";
import { parseArgs } from "node:util";
import type { Tuning } from "../compiler/mod.ts";
import { attentionModel } from "../engine/tune/models.ts";
import { machine, median } from "./measure.ts";
import { load, randomValues } from "./session.ts";

const { adapter, runs, tunings } = parseArgs({
  options: {
    adapter: { type: "string", default: "native" },
    runs: { type: "string", default: "5" },
    tunings: { type: "string", default: "[null]" },
  },
}).values;

const HEADS = { heads: 16, kvHeads: 4, dim: 64 };
const CONTEXT = 4096;

/** Returns a step with the given number of tokens that end at a position. */
function inputsOf(tokens: number, end: number) {
  const rows = (heads: number) => {
    const shape = [tokens, heads, HEADS.dim];
    const data = randomValues(shape.reduce((n, size) => n * size));
    return { dtype: "f32" as const, shape, data };
  };
  const integers = (of: (i: number) => number) => ({
    dtype: "i32" as const,
    shape: [tokens],
    data: Int32Array.from({ length: tokens }, (_, i) => of(i)),
  });
  return {
    x: rows(HEADS.heads),
    key: rows(HEADS.kvHeads),
    value: rows(HEADS.kvHeads),
    sequence: integers(() => 0),
    position: integers((i) => end - tokens + i),
  };
}

const STEPS = [[256, 256], [1024, 1024], [4096, 4096], [1, 256], [1, 4096]];
console.log(machine());
const { model } = attentionModel(HEADS, { tokens: CONTEXT, sequences: 1 });
const benches = await Promise.all(
  (JSON.parse(tunings) as (Tuning | null)[]).map(async (tuning) => ({
    tuning,
    bench: await load(model, {
      adapter: adapter === "native" || adapter === "cpu"
        ? adapter
        : [Number(adapter)],
      mesh: { ep: 1 },
      ...tuning ? { tuning } : {},
    }),
  })),
);
for (const [tokens, end] of STEPS as [number, number][]) {
  const inputs = inputsOf(tokens, end);
  const times = benches.map((): number[] => []);
  for (let run = 0; run <= Number(runs); run++) {
    for (const [i, { bench }] of benches.entries()) {
      const before = process.cpuUsage();
      await bench.compute(inputs);
      const { user, system } = process.cpuUsage(before);
      if (run > 0) times[i]!.push((user + system) / tokens);
    }
  }
  for (const [i, { tuning }] of benches.entries()) {
    console.log(
      `${tokens} tokens up to ${end}, ${
        tuning ? JSON.stringify(tuning) : "the device's tuning"
      }: ${median(times[i]!).toFixed(1)} us a token`,
    );
  }
}
for (const { bench } of benches) await bench.close();
