/** Batches of a training with policy gradients. */

import { invariant } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import type { Program } from "../../spec/plan/plan.ts";
import { LOGPROBS, POLICY_INPUTS } from "../../models/policy.ts";
import type { OpenedCompanion } from "../companions.ts";
import type { Opened } from "../open.ts";
import type { Tensors } from "../run.ts";
import type { PolicyMeter } from "./policy_metrics.ts";
import {
  type GroupSettings,
  type Rewarded,
  sampleGroup,
} from "./policy_rollouts.ts";
import { inputsOf } from "./samples.ts";
import type { BatchTarget, WeighedBatch } from "./task.ts";

/** How a group of rollouts is shared out to batches. */
export interface BatchSettings {
  /** Samples of a batch. */
  readonly batch: number;
  /** Batches of a step. */
  readonly accumulate: number;
  /** Steps with the same rollouts. */
  readonly updates: number;
}

/** Samples a group of responses before its first batch, then returns its batches in order. */
export class PolicyBatches {
  readonly #rollouts: GroupSettings;
  readonly #settings: BatchSettings;
  readonly #meter: PolicyMeter;
  #opened: Opened | undefined;
  #group: { readonly at: number; readonly rewarded: readonly Rewarded[] } = {
    at: -1,
    rewarded: [],
  };

  /** `meter` receives the figures of each group and the inputs of each batch. */
  constructor(rollouts: GroupSettings, settings: BatchSettings, { meter }: {
    readonly meter: PolicyMeter;
  }) {
    this.#rollouts = rollouts;
    this.#settings = settings;
    this.#meter = meter;
  }

  /** Receives the opened plans: the training, the rollouts and, if losses use it, the initial model. */
  begin(opened: Opened): void {
    this.#opened = opened;
  }

  /** Batch `index` over all steps, from 0. */
  async at(index: number, { program }: BatchTarget): Promise<WeighedBatch> {
    const { batch, accumulate, updates } = this.#settings;
    invariant(this.#opened !== undefined, "plans are open before a batch");
    const perGroup = accumulate * updates;
    await this.#sample(this.#opened, Math.floor(index / perGroup));
    const inGroup = index % perGroup;
    const some = this.#group.rewarded.slice(
      inGroup * batch,
      (inGroup + 1) * batch,
    );
    const inputs = policyInputs(some);
    this.#meter.give(inputs, { onPolicy: inGroup < accumulate });
    const [, initial] = this.#opened.companions;
    const all = initial ? await withReference(inputs, initial) : inputs;
    return {
      // A loss need not use all inputs.
      inputs: inputsFor(program, all),
      counted: sum(some.map(({ rollout }) => rollout.tokens.length)),
      tokens: inputs["ids"]!.data.length,
    };
  }

  async #sample(opened: Opened, at: number): Promise<void> {
    if (at === this.#group.at) return;
    const { rewarded, ...figures } = await sampleGroup(
      opened,
      at,
      this.#rollouts,
    );
    this.#group = { at, rewarded };
    this.#meter.begin(figures);
  }
}

/** Inputs of the training, except for log-probabilities of the initial model. */
function policyInputs(rewarded: readonly Rewarded[]): Tensors {
  const inputs = inputsOf(rewarded.map(({ sample }) => sample), {
    weighted: true,
  });
  const count = inputs["ids"]!.data.length;
  const [old, advantages] = [new Float32Array(count), new Float32Array(count)];
  let at = 0;
  for (const { rollout, advantage, sample } of rewarded) {
    const first = at + rollout.prompt.length - 1;
    at += sample.ids.length - 1;
    old.set(rollout.logprobs, first);
    advantages.fill(advantage, first, at);
  }
  const column = (data: Float32Array) =>
    ({ dtype: "f32", shape: [count], data }) as const;
  return {
    ...inputs,
    [POLICY_INPUTS.old]: column(old),
    [POLICY_INPUTS.advantages]: column(advantages),
  };
}

/** The inputs that a program has. */
function inputsFor(
  { inputs: ports }: Program,
  inputs: Tensors,
): Tensors {
  return Object.fromEntries(
    Object.entries(inputs).filter(([input]) => input in ports),
  );
}

/** Adds the log-probabilities of the initial model. */
async function withReference(
  inputs: Tensors,
  { plan, session }: OpenedCompanion,
): Promise<Tensors> {
  const program = plan.programs[0]!;
  const given = inputsFor(program, inputs);
  const { [LOGPROBS]: logprobs } = await session.run(program.name, given, {
    outputs: [LOGPROBS],
    everywhere: true,
    fresh: true,
  });
  return { ...inputs, [POLICY_INPUTS.reference]: logprobs! };
}
