/** A training step as one graph: forward pass, backward pass, and the update of every parameter. */

import { expr } from "../../spec/kernel/text/resolve.ts";
import { ModelError } from "../../spec/errors.ts";
import type { ShortText } from "../../spec/values.ts";
import { isTrained, type TrainedParameters } from "./adapters.ts";
import { gradients, hasGradient, type Scalars } from "./gradients/gradients.ts";
import type { Graph, Node, NodeOf } from "./graph.ts";
import { builderContext, NodeBuilder } from "./gradients/node_builder.ts";
import {
  MASTER,
  type Optimizer,
  OPTIMIZER_STATES,
  update,
} from "./optimizers.ts";
import { microBatch, microName, sharedInputs } from "./micro_batches.ts";
import { biasStep, constantParams, selectionBiases } from "./selection_bias.ts";
import { deriveSizes } from "./sizes.ts";
import { inOrder } from "./trace.ts";

/** Options of a training step. */
export interface TrainStepOptions {
  /** The output to minimize. */
  readonly loss: ShortText;
  readonly optimizer: Optimizer;
  /** Maximum norm of all gradients, for clipping. Default: no clipping. */
  readonly clipNorm?: number;
  /** Whether gradients are accumulated over micro-batches. Default: false. */
  readonly accumulate?: boolean;
  /**
   * Micro-batches in one graph, whose gradients are added in order. Inputs, states and outputs are named by
   * `microName`. Excludes `accumulate`. Default: 1.
   *
   * @integer
   * @minimum 1
   * @maximum MAX_MICRO_BATCHES
   */
  readonly microBatches?: number;
  /** Whether `recompute` blocks are recomputed instead of saved. Default: true. */
  readonly recompute?: boolean;
  /**
   * Step size of selection biases. The bias of an expert rises if fewer tokens than the mean chose it in a step, and
   * falls if more did. Default: biases are constant.
   */
  readonly biasUpdate?: number;
  /** Parameters stored in 16 bits. Each has an f32 master weight as a state, which the optimizer updates. */
  readonly masters?: ReadonlySet<string>;
  /** Which parameters are trained. The others are constant. Default: `all`. */
  readonly trained?: TrainedParameters;
}

/**
 * Inputs of a step besides those of the model: the learning rate, and the step number from 1. With micro-batches also
 * the share of this micro-batch in the step (all shares add up to 1), and the factor of the sum so far: 0 for the first
 * micro-batch, then 1.
 */
export const STEP_INPUTS = {
  rate: "learning_rate",
  step: "step",
  share: "share",
  keep: "keep",
} as const;

/** The state with the accumulated gradient of a parameter. */
export function accumulatedName(parameter: string): string {
  return `accumulated.${parameter}`;
}

/** The state that counts the choices of experts for a selection bias. */
function countedName(bias: string): string {
  return `counted.${bias}`;
}

/** States accumulated over the micro-batches of a step: gradients, and choices of experts if biases follow them. */
export function accumulatedStates(
  { nodes }: Pick<Graph, "nodes">,
  { biasUpdate, trained }: Pick<TrainStepOptions, "biasUpdate" | "trained">,
): string[] {
  const biases = selectionBiases(nodes);
  return nodes.flatMap((node) => {
    if (node.primitive !== "param") return [];
    const { name } = node.params;
    if (!biases.has(node)) {
      return isTrained(name, trained) ? [accumulatedName(name)] : [];
    }
    return biasUpdate === undefined ? [] : [countedName(name)];
  });
}

/** The output with the norm of all gradients before clipping. */
export const GRADIENT_NORM = "gradient_norm";

/**
 * The graph of a training step. Parameters have next values, like states. The optimizer state of a parameter is a state
 * named by `OPTIMIZER_STATES` and the parameter: `adamw.mean.NAME`. A parameter with a master weight
 * (`adamw.master.NAME`) has the same next value as the master weight, rounded by its storage; the master weight is
 * initialized with the unrounded value. Outputs are those of the graph and the norm of the gradients. The selection
 * bias of a router has no gradient: it follows the load of experts or is constant. The parameters of an indexer, and
 * integers, are constant.
 */
export function trainStep(
  graph: Graph,
  options: TrainStepOptions,
  scalars: Scalars = new Map(),
): Graph {
  const { loss, recompute = true } = options;
  const { accumulate = false, microBatches = 1 } = options;
  const { nodes: forward } = graph;
  const shared = sharedInputs(graph);
  const batches = microBatches === 1
    ? [graph]
    : Array.from({ length: microBatches }, (_, i) =>
      microBatch(graph, i, shared));
  const outputs: Graph["outputs"] = Object.assign(
    {},
    ...batches.map(({ outputs }) => outputs),
  );
  const states: Graph["states"] = Object.assign(
    {},
    ...batches.map(({ states }) => states),
  );
  const { of, parameters } = lossAndParameters(graph, options);
  const [local, ...later] = batches.map(({ axes, nodes, outputs }, i) =>
    gradients(
      { axes, nodes },
      outputs[microBatches === 1 ? loss : microName(loss, i)]!,
      parameters,
      { scalars, repeats: recompute },
    )
  ) as [readonly Node[], ...(readonly Node[])[]];
  const context = builderContext(graph.axes, forward, "update");
  const b = new NodeBuilder(context, of);
  const found = later.length > 0
    ? local.map((gradient, i) =>
      sumOfMicroBatches(context, of, [gradient, ...later.map((g) => g[i]!)])
    )
    : accumulate
    ? local.map((gradient, i) => accumulated(b, parameters[i]!, gradient))
    : local;
  const rate = scalarInput(b, STEP_INPUTS.rate);
  const step = scalarInput(b, STEP_INPUTS.step);
  const norm = normOf(
    new NodeBuilder({ ...context, phase: "backward" }, of),
    found,
  );
  const next: { [name: string]: Node } = { ...states };
  for (const [i, parameter] of parameters.entries()) {
    const gradient = found[i]!;
    Object.assign(
      next,
      nextParameter(b, options, { parameter, gradient, norm, rate, step }),
    );
  }
  const { loads, next: moved } = nextBiases(
    b,
    selectionBiases(batches.flatMap(({ nodes }) => nodes)),
    options,
  );
  Object.assign(next, moved);
  const all = { ...outputs, [GRADIENT_NORM]: norm };
  const nodes = inOrder([
    ...Object.values(outputs),
    ...loads,
    // The last layers first, in the order of the backward pass: activations are freed as soon as possible.
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
 * The node of the loss and the parameters to train. Throws ModelError if the graph has no such output, or if no
 * parameter has a gradient.
 */
function lossAndParameters(
  { nodes, outputs }: Graph,
  { loss, trained }: TrainStepOptions,
): { readonly of: Node; readonly parameters: readonly NodeOf<"param">[] } {
  const of = outputs[loss];
  if (of === undefined) {
    throw new ModelError(
      `Cannot train by output '${loss}': the model has no such output. Return one`,
      undefined,
    );
  }
  const biases = selectionBiases(nodes);
  const constant = constantParams(nodes, of);
  const parameters = nodes.filter((node): node is NodeOf<"param"> =>
    node.primitive === "param" && !biases.has(node) && !constant.has(node) &&
    isTrained(node.params.name, trained)
  );
  if (of.dtype === "f32" && !hasGradient(of, parameters)) {
    throw new ModelError(
      `Cannot train by output '${loss}': no parameter has a gradient, because it depends on none, or only through integers. Compute it in f32 from parameters`,
      of.span,
    );
  }
  return { of, parameters };
}

/** An f32 input without axes. */
function scalarInput(b: NodeBuilder, name: string): Node {
  return b.make("input", [], { name }, { axes: [], dtype: "f32" });
}

/** The sum of a gradient over the micro-batches of one graph, in the order of `accumulated`. */
function sumOfMicroBatches(
  context: ReturnType<typeof builderContext>,
  of: Node,
  gradients: readonly Node[],
): Node {
  const inputs = new NodeBuilder(context, of);
  return gradients.reduce<Node | undefined>((sum, gradient, micro) => {
    const b = new NodeBuilder(
      { ...context, phase: "backward" },
      { ...of, micro },
    );
    const share = scalarInput(inputs, microName(STEP_INPUTS.share, micro));
    return sum
      ? b.map(
        (sum, g, share) => expr`${sum} + ${g} * ${share}`,
        sum,
        gradient,
        share,
      )
      : b.map((g, share) => expr`0.0 + ${g} * ${share}`, gradient, share);
  }, undefined)!;
}

/** The accumulated gradient of a parameter after this micro-batch. */
function accumulated(
  b: NodeBuilder,
  parameter: NodeOf<"param">,
  gradient: Node,
): Node {
  const name = accumulatedName(parameter.params.name);
  return b.map(
    (sum, keep, g, share) => expr`${sum} * ${keep} + ${g} * ${share}`,
    b.make("state", [], { name }, parameter),
    scalarInput(b, STEP_INPUTS.keep),
    gradient,
    scalarInput(b, STEP_INPUTS.share),
  );
}

/** The next values of a parameter, its master weight, its accumulated gradient and its optimizer state, by name. */
function nextParameter(
  b: NodeBuilder,
  { optimizer, clipNorm, accumulate, masters }: TrainStepOptions,
  { parameter, gradient, norm, rate, step }: {
    readonly parameter: NodeOf<"param">;
    readonly gradient: Node;
    readonly norm: Node;
    readonly rate: Node;
    readonly step: Node;
  },
): { readonly [name: string]: Node } {
  const { name } = parameter.params;
  const stateNames = OPTIMIZER_STATES[optimizer.kind].map((what) =>
    `${what}.${name}`
  );
  const master = masters?.has(name)
    ? `${MASTER[optimizer.kind]}.${name}`
    : undefined;
  const after = update(b, optimizer, {
    parameter: master === undefined
      ? parameter
      : b.make("state", [], { name: master }, parameter),
    gradient: clipNorm === undefined
      ? gradient
      : clipped(b, gradient, norm, clipNorm),
    optimizerState: stateNames.map((name) =>
      b.make("state", [], { name }, parameter)
    ),
  }, { rate, step });
  const next: { [name: string]: Node } = { [name]: after.parameter };
  if (master !== undefined) next[master] = after.parameter;
  if (accumulate) next[accumulatedName(name)] = gradient;
  stateNames.forEach((name, j) => next[name] = after.optimizerState[j]!);
  return next;
}

/**
 * The next values of selection biases and of their counts. The load is counted over all tokens of the step; it is an
 * integer and therefore equal on every mesh. Throws ModelError if no router has a bias.
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

/** The square root of the sum of all squares. Every element of every parameter counts once, however it is sharded. */
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

/** A gradient scaled to the maximum norm, as in PyTorch's `clip_grad_norm_`. */
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
