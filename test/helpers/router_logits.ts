/** Logits of a small router, and their models in the reference evaluator. */

import type { Test } from "tap";
import type { Model } from "../../compiler/mod.ts";
import {
  evaluate,
  type Tensors,
} from "../../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../../compiler/graph/trace.ts";
import { waves } from "./waves.ts";

export const TOKENS = 12;
export const EXPERTS = 4;
/** [TOKENS, EXPERTS]. */
export const LOGITS: readonly number[] = waves(TOKENS * EXPERTS, 3)
  .map((x) => 2 * x);
/** Logits of each token in f32. */
export const ROWS: readonly (readonly number[])[] = Array.from(
  { length: TOKENS },
  (_, t) => LOGITS.slice(t * EXPERTS, (t + 1) * EXPERTS).map(Math.fround),
);

/** Evaluates a model on these logits. Returns the elements of each output. */
export function runLogits(
  net: Model,
  inputs: Tensors = {},
): { [name: string]: number[] } {
  const { outputs } = evaluate(trace(net), {
    inputs: { logits: LOGITS, ...inputs },
  });
  return Object.fromEntries(
    Object.entries(outputs).map(([name, { data }]) => [name, [...data]]),
  );
}

/** Fails unless both lists have equal lengths and values within 2e-6. */
export function near(
  t: Test,
  found: readonly number[],
  wanted: readonly number[],
  label = "values",
): void {
  t.equal(found.length, wanted.length, `number of ${label}`);
  const off = Math.max(...wanted.map((x, i) => Math.abs(x - found[i]!)));
  t.ok(off < 2e-6, `error of ${label}: ${off}`);
}
