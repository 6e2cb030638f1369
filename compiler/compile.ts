/** The main flow, on one page: a model and a mesh become a plan. */

import type { StoredDType } from "../spec/dtype.ts";
import { printWgsl } from "../spec/kernel/wgsl.ts";
import { GUARANTEED_LIMITS } from "../spec/limits.ts";
import type { Plan, PlanAxis } from "../spec/plan.ts";
import { predictStaging } from "../spec/bytes.ts";
import type { Graph, Lambda, Node, ScalarFunction } from "./graph/graph.ts";
import { trace } from "./graph/trace.ts";
import type { Model } from "./dsl/model.ts";
import { DEFAULT_TILE, type MatmulTile } from "./kernels/matmul.ts";
import { checkLimits, requiredLimits } from "./passes/limits.ts";
import { CHECK_AXIS } from "./passes/lower/check.ts";
import type { Lowering } from "./passes/lower/context.ts";
import {
  allocate,
  dispatchedNodes,
  fuse,
  isMatmul,
  layoutParams,
  lowerGraph,
  placeAxes,
  type Placement,
  simplify,
} from "./passes/mod.ts";
import { perRank } from "./passes/place.ts";

/** Options of `compile`. */
export interface CompileOptions {
  /** Mesh axes in order with their sizes: `{ dp: 2, ep: 2 }`. Default: one rank. */
  readonly mesh?: { readonly [meshAxis: string]: number };
  /** Where axes lie. Default: experts over `ep`, tokens over all mesh axes. */
  readonly place?: Placement;
  /** Stored dtype of source tensors, from the checkpoint's headers. Default: the parameter's own dtype. */
  readonly weights?: { readonly [tensor: string]: StoredDType };
  /** Limits to respect. Default: those that every WebGPU device guarantees. */
  readonly limits?: { readonly [limit: string]: number };
  /** Let token ids travel along with every routing; outputs `check.0`, `check.1`, … count choices that did not come home. */
  readonly check?: boolean;
  /** What a tuner found for the adapter. Default: variants that do well everywhere. Bits do not depend on it. */
  readonly tuning?: Tuning;
}

/** A tuning table. */
export interface Tuning {
  readonly matmul?: MatmulTile;
}

/**
 * Compile a model to a plan.
 *
 * Throws ModelError, LowerError or PlacementError for mistakes in the model or the mesh, MachineError where the limits do not allow it.
 */
export async function compile(
  model: Model,
  options: CompileOptions = {},
): Promise<Plan> {
  const mesh = Object.entries(options.mesh ?? {}).map(([name, size]) => ({
    name,
    size,
  }));
  const graph = simplify(trace(model));
  const placed = placeAxes(graph, mesh, options.place);
  const scalars = await lowerScalars(graph);
  const dispatched = dispatchedNodes(graph);
  const layouts = layoutParams(
    graph,
    placed,
    dispatched,
    options.weights ?? {},
  );
  const fusion = fuse(graph, (node) => isMatmul(node, layouts, dispatched));
  const lowering: Lowering = {
    graph,
    placed,
    fusion,
    tile: options.tuning?.matmul ?? DEFAULT_TILE,
    check: options.check ?? false,
    checks: [],
    scalars,
    dispatched,
    layouts,
    goesBack: goingBack(graph),
    buffers: new Map(),
    kernels: new Map(),
    kernelNames: new Map(),
    numbers: new Map(),
    steps: [],
    weights: [],
    storages: new Map(),
    routings: new Map(),
    results: new Map(),
    ropeTables: new Map(),
  };
  const { inputs, outputs } = lowerGraph(lowering);
  const { steps } = lowering;
  const { allocations, buffers } = allocate(
    lowering.buffers,
    steps,
    placed.ranks,
  );
  const draft: Plan = {
    version: 1,
    numerics: "exact",
    requiredLimits: {},
    requiredFeatures: [],
    mesh,
    ranks: placed.ranks,
    axes: { ...placed.axes, ...checkAxis(lowering) },
    counts: placed.counts,
    allocations,
    buffers,
    kernels: Object.fromEntries(
      [...lowering.kernels].map((
        [name, tree],
      ) => [name, { tree, wgsl: printWgsl(tree) }]),
    ),
    weights: lowering.weights,
    programs: [{ name: "main", inputs, outputs, steps }],
    peakBytes: perRank(
      Array.from(
        { length: placed.ranks },
        (_, rank) =>
          allocations.reduce(
            (n, { bytes }) =>
              n + (typeof bytes === "number" ? bytes : bytes[rank]!),
            0,
          ),
      ),
    ),
    staging: { local: 0, host: 0 },
  };
  const plan = {
    ...draft,
    staging: predictStaging(draft),
    requiredLimits: requiredLimits(draft),
  };
  checkLimits(plan, { ...GUARANTEED_LIMITS, ...options.limits });
  return plan;
}

/** The user's lambdas in kernel terms. Reads source files, so it is loaded only when there are any. */
async function lowerScalars(
  graph: Graph,
): Promise<Map<Lambda, ScalarFunction>> {
  const lambdas = [
    ...new Set(
      graph.nodes.flatMap((node) =>
        node.primitive === "map" && !node.params.lambda.lowered
          ? [node.params.lambda]
          : []
      ),
    ),
  ];
  if (!lambdas.length) return new Map();
  const { lowerLambdas } = await import("./source/lower_scalar.ts");
  const lowered = await lowerLambdas(lambdas);
  return new Map(lambdas.map((lambda, i) => [lambda, lowered[i]!]));
}

/** The axis of check counts: every rank has one. */
function checkAxis(
  { checks, placed: { mesh, ranks } }: Lowering,
): { [axis: string]: PlanAxis } {
  if (!checks.length) return {};
  const over = mesh.map(({ name }) => name);
  return {
    [CHECK_AXIS]: {
      size: ranks,
      over,
      table: Array.from({ length: ranks }, (_, rank) => [rank]),
    },
  };
}

/** What combines take, seen through views. */
function goingBack(graph: Graph): Set<Node> {
  const result = new Set<Node>();
  for (const node of graph.nodes) {
    if (node.primitive !== "combine") continue;
    let value = node.inputs[0]!;
    result.add(value);
    while (
      value.primitive === "rename" || value.primitive === "split" ||
      value.primitive === "merge"
    ) {
      value = value.inputs[0]!;
      result.add(value);
    }
  }
  return result;
}
