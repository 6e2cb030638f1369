/**
 * Attention by itself, 16 heads of 64 over 4 heads of keys: time per token of prefills from 256 to 4096 tokens, and of a
 * decode step after so many, for some tunings in turn. `--adapter native|cpu|NUMBER` (default: native), `--runs N`.
 */

import process from "node:process";
import { parseArgs } from "node:util";
import { attention, model, type Tuning, upTo } from "../compiler/mod.ts";
import { machine, median } from "./measure.ts";
import { load, randomValues } from "./session.ts";

const { adapter, runs, tunings } = parseArgs({
  options: {
    adapter: { type: "string", default: "native" },
    runs: { type: "string", default: "5" },
    tunings: { type: "string", default: "[{}]" },
  },
}).values;

const SHAPE = { head: 16, kvHead: 4, headDim: 64 };
const CONTEXT = 4096;

function attentionOf(tokens: number) {
  return model(
    { token: upTo(tokens), sequence: 1, context: CONTEXT, ...SHAPE },
    (m) => {
      const cache = "sequence context kvHead headDim";
      const { y, keys, values } = attention(
        m.input("x", "token head headDim"),
        {
          key: m.input("key", "token kvHead headDim"),
          value: m.input("value", "token kvHead headDim"),
          sequence: m.input("sequence", "token", { dtype: "i32" }),
          position: m.input("position", "token", { dtype: "i32" }),
          keys: m.state("keys", cache),
          values: m.state("values", cache),
        },
      );
      return { y, keys, values };
    },
  );
}

/** A step of so many tokens that end at a position. */
function inputsOf(tokens: number, end: number) {
  const rows = (name: "head" | "kvHead") => {
    const shape = [tokens, SHAPE[name], SHAPE.headDim];
    const data = randomValues(shape.reduce((n, size) => n * size));
    return { dtype: "f32" as const, shape, data };
  };
  const integers = (of: (i: number) => number) => ({
    dtype: "i32" as const,
    shape: [tokens],
    data: Int32Array.from({ length: tokens }, (_, i) => of(i)),
  });
  return {
    ...{ x: rows("head"), key: rows("kvHead"), value: rows("kvHead") },
    sequence: integers(() => 0),
    position: integers((i) => end - tokens + i),
  };
}

const STEPS = [[256, 256], [1024, 1024], [4096, 4096], [1, 256], [1, 4096]];
console.log(machine());
const benches = await Promise.all(
  (JSON.parse(tunings) as Tuning[]).map(async (tuning) => ({
    tuning,
    bench: await load(attentionOf(CONTEXT), {
      adapter: adapter === "native" || adapter === "cpu"
        ? adapter
        : [Number(adapter)],
      mesh: { ep: 1 },
      tuning,
    }),
  })),
);
for (const [tokens, end] of STEPS as [number, number][]) {
  const inputs = inputsOf(tokens, end);
  const times = benches.map((): number[] => []);
  for (let run = 0; run <= Number(runs); run++) {
    for (const [i, { bench }] of benches.entries()) {
      const before = process.cpuUsage();
      await bench.session.run("main", inputs, { outputs: [] });
      await bench.idle();
      const { user, system } = process.cpuUsage(before);
      if (run > 0) times[i]!.push((user + system) / tokens);
    }
  }
  for (const [i, { tuning }] of benches.entries()) {
    console.log(
      `${tokens} tokens up to ${end}, ${JSON.stringify(tuning)}: ${
        median(times[i]!).toFixed(1)
      } us a token`,
    );
  }
}
for (const { bench } of benches) await bench.close();
