/** What is assumed of a step that is predicted: how many tokens, of which sequences, and which experts they choose. */

import { modelAxis } from "../../spec/axis_parts.ts";
import { type HostTensor } from "../../runtime/mod.ts";
import { countsOf } from "../../runtime/inputs.ts";
import type { RunCounts } from "../../runtime/run_counts.ts";
import { dealAxes, type RunAxes } from "../../runtime/shard.ts";
import { DataError } from "../../spec/errors.ts";
import type { Plan, Program } from "../../spec/plan.ts";

/** A step of a program, as far as its time depends on it. */
export interface SceneOptions {
  /** Items of every run-time axis, such as tokens. */
  readonly tokens: number;
  /** Sequences that the tokens belong to, evenly. Default: 1. */
  readonly sequences?: number;
  /** Tokens of each sequence that came in earlier steps. Default: 0. */
  readonly past?: number;
  /**
   * How experts are chosen. Default: as evenly as can be. A number: at random, expert e with weight 1 / (e + 1) ** skew;
   * with 0, none is preferred.
   */
  readonly skew?: number;
  /** What was chosen, instead: of each router in order, the experts of each token, [token, choice]. */
  readonly choices?: readonly ArrayLike<number>[];
}

/** A scene, dealt to the ranks of a plan. */
export interface Scene {
  readonly plan: Plan;
  readonly program: Program;
  readonly options: SceneOptions;
  readonly axes: RunAxes;
  readonly counts: RunCounts;
  /** Values of integer inputs that times depend on: which sequence a token is of, and where in it. */
  readonly inputs: { readonly [name: string]: HostTensor };
}

/** Deal a scene to the ranks of a plan's first program. Throws DataError where the plan has no room for it. */
export function dealScene(plan: Plan, options: SceneOptions): Scene {
  const program = plan.programs[0]!;
  const { tokens, sequences = 1, past = 0 } = options;
  const lengths = new Map<string, number>();
  for (const { axes, indexes } of Object.values(program.inputs)) {
    for (const axis of axes) {
      const { dynamic, exact, size } = plan.axes[axis]!;
      if (!dynamic || exact) continue;
      if (indexes !== undefined && plan.axes[indexes]!.dynamic) {
        lengths.set(
          modelAxis(plan, axis),
          Math.min(sequences, tokens, size),
        );
        continue;
      }
      if (tokens > size) {
        throw new DataError(
          `Cannot predict a step of ${tokens} tokens: the plan has room for ${size}. Raise --max-tokens, or give fewer`,
        );
      }
      lengths.set(modelAxis(plan, axis), tokens);
    }
  }
  const each = Math.max(1, Math.ceil(tokens / sequences));
  const inputs: { [name: string]: HostTensor } = {};
  for (const [name, port] of Object.entries(program.inputs)) {
    const value = VALUES[name];
    if (port.dtype !== "i32" || port.axes.length !== 1 || !value) continue;
    const length = lengths.get(modelAxis(plan, port.axes[0]!)) ?? 0;
    const data = Int32Array.from(
      { length },
      (_, i) => value(i, { each, past, tokens }),
    );
    inputs[name] = { dtype: "i32", shape: [length], data };
  }
  const axes = dealAxes(plan, lengths, inputs, new Map());
  const counts = countsOf(plan, axes);
  return { plan, program, options, axes, counts, inputs };
}

/** Inputs of decoders that times depend on. */
const VALUES: {
  readonly [input: string]: (i: number, step: StepTokens) => number;
} = {
  sequence: (i, { each }) => Math.floor(i / each),
  position: (i, { each, past }) => past + i % each,
  // The last token of each sequence.
  rows: (i, { each, tokens }) => Math.min((i + 1) * each, tokens) - 1,
};

/** Tokens of a sequence now and before, and of all sequences. */
interface StepTokens {
  readonly each: number;
  readonly past: number;
  readonly tokens: number;
}

/** How many of some tokens' choices fall on each expert. Throws DataError where given choices are none that can be made. */
export function chooseExperts(
  tokens: ArrayLike<number>,
  { topK, experts, routing }: {
    readonly topK: number;
    readonly experts: number;
    readonly routing: number;
  },
  { skew, choices }: Pick<SceneOptions, "skew" | "choices">,
): Uint32Array {
  const counts = new Uint32Array(experts);
  if (choices) {
    for (let i = 0; i < tokens.length; i++) {
      for (let j = 0; j < topK; j++) {
        const expert = choices[routing]?.[tokens[i]! * topK + j] ?? -1;
        if (expert >= 0 && expert < experts) counts[expert]! += 1;
        else {
          throw new DataError(
            `Cannot predict what router ${routing} does: of token ${
              tokens[i]
            }, choice ${j} is ${
              expert < 0 ? "missing" : `expert ${expert}, of ${experts}`
            }. Record a run of the same model and as many tokens`,
          );
        }
      }
    }
    return counts;
  }
  if (skew === undefined) {
    for (let i = 0; i < tokens.length; i++) {
      for (let j = 0; j < topK; j++) {
        counts[(tokens[i]! * topK + j) % experts]! += 1;
      }
    }
    return counts;
  }
  const weights = Array.from({ length: experts }, (_, e) => (e + 1) ** -skew);
  for (let i = 0; i < tokens.length; i++) {
    const random = randomFrom(tokens[i]! * 4099 + routing);
    // Each choice is another expert: the likeliest of those with the least -log(u) / weight.
    const keys = weights.map((weight) => -Math.log(1 - random()) / weight);
    const order = keys.map((_, e) => e).sort((a, b) => keys[a]! - keys[b]!);
    for (const e of order.slice(0, topK)) counts[e]! += 1;
  }
  return counts;
}

/** Repeatable numbers from 0 to below 1 (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = Math.imul(seed + 1, 0x9e3779b1);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
