/** Model of four equal layers for pipeline stages, and its predicted work. */

import { simulate } from "../../engine/planner/simulate/mod.ts";
import { add, dot, mean, model, mul, relu, upTo } from "../../compiler/mod.ts";
import type { Machine } from "../../spec/machine.ts";
import type { Plan } from "../../spec/plan/plan.ts";

/** Tokens of a micro-batch. */
export const TOKENS = 2048;

const EMBED = 1024, HIDDEN = 4096;

/** Bytes that the forward pass of a layer saves: its input, and its activations before and after `relu`. */
export const savedBytes = 4 * TOKENS * (EMBED + 2 * HIDDEN);

/** Four equal layers, one per stage. */
export const chain = model(
  { token: upTo(TOKENS), embed: EMBED, hidden: HIDDEN },
  (m) => {
    const layers = Array.from({ length: 4 }, (_, i) => i);
    const y = layers.reduce(
      (x, i) =>
        m.block(`layers.${i}`, {}, (b) => {
          const up = dot(x, b.param("up", "hidden embed"), "embed");
          const down = b.param("down", "embed hidden");
          return add(x, dot(relu(up), down, "hidden"));
        }),
      m.input("x", "token embed"),
    );
    return { loss: mean(mean(mul(y, y), "embed"), "token") };
  },
);

/** Work of a rank in a predicted step, in seconds. */
export interface StepWork {
  readonly rank: number;
  readonly step: number;
  readonly start: number;
  readonly seconds: number;
}

/** Predicts the work of ranks until the last backward pass, with free transfers. */
export function backwardWork(plan: Plan, machine: Machine): StepWork[] {
  const { steps } = plan.programs[0]!;
  const last = steps.findLastIndex((step) =>
    step.op === "launch" && /matmul|outer/.test(step.kernel)
  );
  const work: StepWork[] = [];
  const { sameHost } = machine.links;
  simulate(
    plan,
    {
      ...machine,
      links: { sameHost: { ...sameHost!, latency: 1e-9, bandwidth: 1e15 } },
    },
    { tokens: TOKENS, sequences: 1, past: 0 },
    {
      onSpent({ what, ...spent }) {
        if (spent.step <= last && what !== "waiting") work.push(spent);
      },
    },
  );
  return work;
}
