/** Optimizers: the update of a parameter from its gradient and optimizer state, in primitives. */

import { expr } from "../../spec/kernel/text/resolve.ts";
import type { Node } from "./graph.ts";
import type { NodeBuilder } from "./gradients/node_builder.ts";

/** AdamW: Adam with decoupled weight decay, as in PyTorch. */
export interface AdamW {
  readonly kind: "adamW";
  /** Decay rates of the mean gradient and of the mean square. Default: 0.9 and 0.999. */
  readonly betas?: readonly [number, number];
  /** Added to the root of the mean square. Default: 1e-8. */
  readonly epsilon?: number;
  /** Weight decay per step as a fraction of the learning rate. Default: 0.01. */
  readonly weightDecay?: number;
}

/** SGD with momentum, as in PyTorch. */
export interface Sgd {
  readonly kind: "sgd";
  /** Momentum factor. Default: 0.9. */
  readonly momentum?: number;
  /** Weight decay, added to the gradient as a multiple of the parameter. Default: 0. */
  readonly weightDecay?: number;
}

/** An optimizer. */
export type Optimizer = AdamW | Sgd;

/** The optimizer state of each parameter, by the prefix of its name. */
export const OPTIMIZER_STATES: {
  readonly [K in Optimizer["kind"]]: readonly string[];
} = {
  adamW: ["adamw.mean", "adamw.square"],
  sgd: ["sgd.momentum"],
};

/** The state with the f32 master weight of a parameter stored in 16 bits, by the prefix of its name. */
export const MASTER: { readonly [K in Optimizer["kind"]]: string } = {
  adamW: "adamw.master",
  sgd: "sgd.master",
};

/** Numbers that the host provides for each step. */
export interface StepInputs {
  /** The learning rate. */
  readonly rate: Node;
  /** The number of this step, from 1, as f32. */
  readonly step: Node;
}

/** One parameter before a step. */
export interface Before {
  readonly parameter: Node;
  readonly gradient: Node;
  /** The optimizer state, in the order of `OPTIMIZER_STATES`. */
  readonly optimizerState: readonly Node[];
}

/** One parameter after a step. */
export interface After {
  readonly parameter: Node;
  readonly optimizerState: readonly Node[];
}

/** A step of one parameter. */
export function update(
  b: NodeBuilder,
  optimizer: Optimizer,
  before: Before,
  inputs: StepInputs,
): After {
  return optimizer.kind === "adamW"
    ? adamW(b, optimizer, before, inputs)
    : sgd(b, optimizer, before, inputs);
}

function adamW(
  b: NodeBuilder,
  { betas = [0.9, 0.999], epsilon = 1e-8, weightDecay = 0.01 }: AdamW,
  { parameter, gradient, optimizerState }: Before,
  { rate, step }: StepInputs,
): After {
  const [first, second] = betas;
  const mean = b.map(
    (m, g) => expr`${m} * ${first} + ${g} * ${1 - first}`,
    optimizerState[0]!,
    gradient,
  );
  const square = b.map(
    (v, g) => expr`${v} * ${second} + ${g} * ${g} * ${1 - second}`,
    optimizerState[1]!,
    gradient,
  );
  // 1 - beta^step: bias correction of means that start at 0.
  const share = (beta: number) =>
    b.map((t) => expr`1.0 - exp(${t} * ${Math.log(beta)})`, step);
  const next = b.map(
    (p, m, v, lr, c1, c2) => {
      const change = expr`${m} / ${c1} / (sqrt(${v} / ${c2}) + ${epsilon})`;
      return expr`${p} - ${lr} * ${weightDecay} * ${p} - ${lr} * ${change}`;
    },
    parameter,
    mean,
    square,
    rate,
    share(first),
    share(second),
  );
  return { parameter: next, optimizerState: [mean, square] };
}

function sgd(
  b: NodeBuilder,
  { momentum = 0.9, weightDecay = 0 }: Sgd,
  { parameter, gradient, optimizerState }: Before,
  { rate }: StepInputs,
): After {
  const velocity = b.map(
    (v, g, p) => {
      const slope = weightDecay === 0 ? g : expr`${g} + ${p} * ${weightDecay}`;
      return expr`${v} * ${momentum} + ${slope}`;
    },
    optimizerState[0]!,
    gradient,
    parameter,
  );
  const next = b.map(
    (p, v, lr) => expr`${p} - ${lr} * ${v}`,
    parameter,
    velocity,
    rate,
  );
  return { parameter: next, optimizerState: [velocity] };
}
