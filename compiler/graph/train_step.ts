/** One step of training as one graph: forward, backward, and the update of every parameter. */

import { expr } from "../../spec/kernel/resolve.ts";
import { ModelError } from "../../spec/errors.ts";
import { gradients, type Scalars } from "./gradients.ts";
import type { Graph, Node, NodeOf } from "./graph.ts";
import { builderContext, NodeBuilder } from "./node_builder.ts";
import {
  MASTER,
  type Optimizer,
  OPTIMIZER_STATES,
  update,
} from "./optimizers.ts";
import { biasStep, selectionBiases } from "./selection_bias.ts";
import { deriveSizes } from "./sizes.ts";
import { inOrder } from "./trace.ts";

/** How a step is taken. */
export interface TrainStepOptions {
  /** The output of the graph to make smaller. */
  readonly loss: string;
  readonly optimizer: Optimizer;
  /** Gradients are scaled down together where their norm is larger; default: not. */
  readonly clipNorm?: number;
  /** Gradients are added up over several batches; default: each batch is a step. */
  readonly accumulate?: boolean;
  /** What `recompute` says is computed again for gradients; else it is kept. Default: true. */
  readonly recompute?: boolean;
  /**
   * How much the selection bias of an expert goes up after a step in which fewer than the mean of tokens chose it, and down
   * after one in which more did; default: biases stay.
   */
  readonly biasUpdate?: number;
  /** Parameters that are stored in 16 bits: an f32 master of each is a state, and is what the optimizer updates. */
  readonly masters?: ReadonlySet<string>;
}

/**
 * Inputs that a step has besides those of the model: the learning rate, and the number of the step from 1. Where gradients
 * are added up over batches, also what this batch counts for in the step, the shares of all being 1 together, and by what
 * the sum so far is multiplied: 0 in the first batch, then 1.
 */
export const STEP_INPUTS = {
  rate: "learning_rate",
  step: "step",
  share: "share",
  keep: "keep",
} as const;

/** The state in which gradients of a parameter are added up. */
export function accumulatedName(parameter: string): string {
  return `accumulated.${parameter}`;
}

/** The state in which choices of experts are counted, whose selection bias it is. */
function countedName(bias: string): string {
  return `counted.${bias}`;
}

/** What is added up over the batches of a step: gradients, and where biases follow them, choices of experts. */
export function accumulatedStates(
  { nodes }: Pick<Graph, "nodes">,
  { biasUpdate }: Pick<TrainStepOptions, "biasUpdate">,
): string[] {
  const biases = selectionBiases(nodes);
  return nodes.flatMap((node) => {
    if (node.primitive !== "param") return [];
    const { name } = node.params;
    if (!biases.has(node)) return [accumulatedName(name)];
    return biasUpdate === undefined ? [] : [countedName(name)];
  });
}

/** The output that has the norm of all gradients together, before clipping. */
export const GRADIENT_NORM = "gradient_norm";

/**
 * The graph of a training step. Parameters have next values, as states do; the optimizer state of one is a state
 * named by `OPTIMIZER_STATES` and it: `adamw.mean.NAME`. Where a parameter has a master (`adamw.master.NAME`), both have the
 * same next value, which the parameter's storage rounds; a master starts as what is written to it. Outputs are those of the graph and the norm of the gradients. The
 * selection bias of a router has no gradient: it follows the load of experts, or stays.
 */
export function trainStep(
  graph: Graph,
  options: TrainStepOptions,
  scalars: Scalars = new Map(),
): Graph {
  const { loss, optimizer, clipNorm, recompute = true } = options;
  const { accumulate = false, masters = new Set() } = options;
  const { nodes: forward, outputs, states } = graph;
  const of = outputs[loss];
  if (of === undefined) {
    throw new ModelError(
      `Cannot train by output '${loss}': the model has no such output. Return one`,
      undefined,
    );
  }
  const biases = selectionBiases(forward);
  const parameters = forward.filter((node): node is NodeOf<"param"> =>
    node.primitive === "param" && !biases.has(node)
  );
  const local = gradients(
    { axes: graph.axes, nodes: forward },
    of,
    parameters,
    { scalars, repeats: recompute },
  );
  const context = builderContext(graph.axes, forward, "update");
  const b = new NodeBuilder(context, of);
  const scalar = (name: string) =>
    b.make("input", [], { name }, { axes: [], dtype: "f32" });
  const found = accumulate
    ? local.map((gradient, i) =>
      b.map(
        (sum, keep, g, share) => expr`${sum} * ${keep} + ${g} * ${share}`,
        b.make("state", [], {
          name: accumulatedName(parameters[i]!.params.name),
        }, parameters[i]!),
        scalar(STEP_INPUTS.keep),
        gradient,
        scalar(STEP_INPUTS.share),
      )
    )
    : local;
  const rate = scalar(STEP_INPUTS.rate);
  const step = scalar(STEP_INPUTS.step);
  const norm = normOf(
    new NodeBuilder({ ...context, phase: "backward" }, of),
    found,
  );
  const next: { [name: string]: Node } = { ...states };
  for (const [i, parameter] of parameters.entries()) {
    const { name } = parameter.params;
    const stateNames = OPTIMIZER_STATES[optimizer.kind].map((what) =>
      `${what}.${name}`
    );
    const master = masters.has(name)
      ? `${MASTER[optimizer.kind]}.${name}`
      : undefined;
    const after = update(b, optimizer, {
      parameter: master === undefined
        ? parameter
        : b.make("state", [], { name: master }, parameter),
      gradient: clipNorm === undefined
        ? found[i]!
        : clipped(b, found[i]!, norm, clipNorm),
      optimizerState: stateNames.map((name) =>
        b.make("state", [], { name }, parameter)
      ),
    }, { rate, step });
    next[name] = after.parameter;
    if (master !== undefined) next[master] = after.parameter;
    if (accumulate) next[accumulatedName(name)] = found[i]!;
    stateNames.forEach((name, j) => next[name] = after.optimizerState[j]!);
  }
  const { loads, next: moved } = nextBiases(b, biases, options);
  Object.assign(next, moved);
  const all = { ...outputs, [GRADIENT_NORM]: norm };
  const nodes = inOrder([
    ...Object.values(outputs),
    ...loads,
    // The last layers first, as they are gone through: what only a gradient needs is free when it is there.
    ...[...found].reverse(),
    ...Object.values(all),
    ...Object.values(next),
  ]);
  return {
    axes: deriveSizes(graph.axes, nodes),
    nodes,
    outputs: all,
    states: next,
  };
}

/**
 * The next values of selection biases, and of the counts that they follow. A load is counted over all tokens of the step:
 * whole numbers, so that it is the same on every mesh. Throws ModelError where no router has a bias.
 */
function nextBiases(
  b: NodeBuilder,
  biases: ReturnType<typeof selectionBiases>,
  { biasUpdate, accumulate = false }: TrainStepOptions,
): {
  readonly loads: readonly Node[];
  readonly next: { readonly [name: string]: Node };
} {
  if (biasUpdate === undefined) return { loads: [], next: {} };
  if (biases.size === 0) {
    throw new ModelError(
      "Cannot update selection biases: no router of the model has one. Leave the update out",
      undefined,
    );
  }
  const next: { [name: string]: Node } = {};
  const loads = [...biases].map(([bias, routers]) => {
    const local = routers.map((router) =>
      b.sumTo(b.make("tupleElement", [router], { field: "chosen" }), bias.axes)
    ).reduce((sum, load) => b.add(sum, load));
    const { name } = bias.params;
    const load = accumulate
      ? b.map(
        (sum, keep, n) => expr`${sum} * ${keep} + ${n}`,
        b.make("state", [], { name: countedName(name) }, bias),
        b.make("input", [], { name: STEP_INPUTS.keep }, {
          axes: [],
          dtype: "f32",
        }),
        local,
      )
      : local;
    if (accumulate) next[countedName(name)] = load;
    next[name] = b.add(bias, biasStep(b, load, biasUpdate));
    return load;
  });
  return { loads, next };
}

/** The root of the sum of all squares: every element of every parameter counts once, wherever it is stored. */
function normOf(b: NodeBuilder, found: readonly Node[]): Node {
  const squares = found.map((gradient) => {
    const square = b.map((g) => expr`${g} * ${g}`, gradient);
    return square.axes.length === 0
      ? square
      : b.make("reduceSum", [square], { over: square.axes });
  });
  const sum = squares.reduce((x, y) => b.add(x, y));
  return b.map((x) => expr`sqrt(${x})`, sum);
}

/** A gradient no longer than its share of `limit`; PyTorch's `clip_grad_norm_`. */
function clipped(
  b: NodeBuilder,
  gradient: Node,
  norm: Node,
  limit: number,
): Node {
  return b.map(
    (g, n) => expr`${g} * min(1.0, ${limit} / (${n} + 1e-6))`,
    gradient,
    norm,
  );
}
