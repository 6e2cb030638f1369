/** Inputs of runs whose results depend on every step of a plan. */

import { ACCUMULATE, STEP_INPUTS, VALIDATE } from "../../compiler/mod.ts";
import type { Call } from "./runs.ts";

/** Two sequences of three and two tokens, then one more token each. */
const INFERENCE: readonly Call[] = [
  ["main", {
    ids: [7, 300, 11, 12, 900],
    position: [0, 1, 2, 0, 1],
    sequence: [0, 0, 0, 1, 1],
  }],
  ["main", { ids: [45, 46], position: [3, 2], sequence: [0, 1] }],
];

const BATCHES = [0, 1].map((n) => ({
  ids: [7 + n, 300, 11, 12, 900, 5],
  position: [0, 1, 2, 0, 1, 2],
  sequence: [0, 0, 0, 1, 1, 1],
  labels: [300, 11 + n, 2, 900, 5, -1],
}));

/** Two training steps of two micro-batches each, with validation after each. */
const TRAINING: readonly Call[] = [1, 2].flatMap((step) => {
  const numbers = {
    [STEP_INPUTS.rate]: 0.01,
    [STEP_INPUTS.step]: step,
    [STEP_INPUTS.share]: 0.5,
  };
  return [
    [ACCUMULATE, { ...BATCHES[0], ...numbers, [STEP_INPUTS.keep]: 0 }],
    ["main", { ...BATCHES[1], ...numbers, [STEP_INPUTS.keep]: 1 }],
    [VALIDATE, { ...BATCHES[1] }],
  ] as const;
});

/** Returns the calls of a plan's programs. Token ids are below `vocabulary`. */
export function callsOf(
  kind: "inference" | "training",
  vocabulary: number,
): readonly Call[] {
  return (kind === "inference" ? INFERENCE : TRAINING).map((
    [program, inputs],
  ): Call => [
    program,
    Object.fromEntries(
      Object.entries(inputs).map(([name, value]) => [
        name,
        Array.isArray(value) && ["ids", "labels"].includes(name)
          ? value.map((id: number) => id % vocabulary)
          : value,
      ]),
    ),
  ]);
}
