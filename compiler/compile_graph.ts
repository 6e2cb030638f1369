/** From a graph to a plan: the passes, on one page. */

import type { Activations } from "../spec/activations.ts";
import { type FileDType, isHalf } from "../spec/dtype.ts";
import { ModelError } from "../spec/errors.ts";
import { GUARANTEED_LIMITS, MAX_CHUNKS } from "../spec/limits.ts";
import type { Plan } from "../spec/plan/plan.ts";
import {
  type Dispatcher,
  dispatcherWords,
  type Strategy,
} from "../spec/strategies.ts";
import { countDropped } from "./graph/count_dropped.ts";
import { dispatchedNodes } from "./graph/dispatched_nodes.ts";
import type { Scalars } from "./graph/gradients.ts";
import type { Graph } from "./graph/graph.ts";
import { accumulatedName } from "./graph/train_step.ts";
import { withSourceNames } from "./source_names.ts";
import { DEFAULT_TILE } from "./tuning/tile.ts";
import type { Tuning } from "./tuning/table.ts";
import { checkLimits } from "./passes/limits.ts";
import {
  allocate,
  assemble,
  type CacheDType,
  expand,
  fillBuckets,
  fuse,
  isMatmul,
  layoutParams,
  lowerGraph,
  mergeLaunches,
  overlap,
  type Pages,
  paginate,
  returningNodes,
  simplify,
  startLowering,
  storeCaches,
  waitForExchanges,
} from "./passes/mod.ts";
import {
  axisFacts,
  checkSizes,
  checkStates,
  localize,
  type Placement,
  readPlacement,
  recomputeViews,
  shard,
} from "./sharding/mod.ts";

/**
 * What ranks that hold the same parameter share, each an equal part of an axis: nothing (0); the optimizer state and the
 * update (1); the parameter too, which is gathered where it is used (3). Stage 2 of DeepSpeed is in 1: gradients are
 * reduce-scattered in any case.
 */
export type ZeroStage = 0 | 1 | 3;

/** Options of `compile`. */
export interface CompileOptions extends Strategy {
  /** Mesh axes in order with their sizes: `{ dp: 2, ep: 2 }`. Default: one rank. */
  readonly mesh?: { readonly [meshAxis: string]: number };
  /** Which axes are sharded over which mesh axes. Default: what the names of the mesh axes say, see `MESH_AXES`. */
  readonly place?: Placement;
  /** Stored dtype of source tensors, from the checkpoint's headers. Default: the parameter's own dtype. */
  readonly weights?: { readonly [tensor: string]: FileDType };
  /**
   * Activations of products with packed weights whose elements are integers: f32, or quantized to blocks of 32 integers of 8 bits.
   * Default: f32.
   */
  readonly activations?: Activations;
  /** Limits to respect. Default: those that every WebGPU device guarantees. */
  readonly limits?: { readonly [limit: string]: number };
  /** Compile what needs more than the limits too; `limitProblems` says what that is. Default: it is refused. */
  readonly overLimits?: boolean;
  /** Send token ids with every routing; outputs `check.0`, `check.1`, … count choices that did not return. */
  readonly check?: boolean;
  /** Output `chosen.N` and `dropped.N`: choices of experts of each routing with a capacity, and those that it dropped. */
  readonly countDropped?: boolean;
  /**
   * Keep caches of keys and values in pages: `count` of them on every rank, each of `size` positions. The input `pages`, i32
   * [sequence, block], says in which page of its rank each block of `size` positions of a sequence is. Layers with a window have
   * fewer pages, and a table of their own. Not in training. Bits do not depend on it. A function is given how many ranks
   * the sequences are sharded over. Default: every sequence has room for all positions.
   */
  readonly pages?: Pages | ((groupSize: number) => Pages);
  /**
   * What caches of keys and values are stored as: in `f16` or `bf16` they are rounded to nearest as they are written, and take
   * half the memory. Not in training. Default: f32.
   */
  readonly kvCacheDtype?: CacheDType;
  /** Of a step of training: what ranks that hold the same parameter share. Bits do not depend on it. Default: 0. */
  readonly zero?: ZeroStage;
  /** What a tuner found for the adapter. Default: variants that do well everywhere. Bits do not depend on it. */
  readonly tuning?: Tuning;
}

/**
 * Compile a traced graph whose lambdas have been lowered to scalar functions. Loads neither TypeScript nor a built-in module
 * of Node, so that it runs in browsers.
 */
export function compileLowered(
  traced: Graph,
  scalars: Scalars,
  options: CompileOptions = {},
): Plan {
  const mesh = Object.entries(options.mesh ?? {}).map(([name, size]) => ({
    name,
    size,
  }));
  const { zero = 0 } = options;
  const counted = options.countDropped ? countDropped(traced) : traced;
  const simple = zero === 3
    ? recomputeViews(simplify(counted))
    : simplify(counted);
  checkStates(simple);
  const place = readPlacement(simple, mesh, options.place);
  const facts = axisFacts(simple, place.mesh, place.requests);
  checkSizes(facts);
  const sharded = shard(facts, {
    // Sums of gradients are sharded in any case: each is sent as often, and less memory is needed.
    shardsState: (name) => zero > 0 || name.startsWith(accumulatedName("")),
    shardsParameters: zero === 3,
    dispatcher: dispatcherOf(options),
  });
  const { pages, kvCacheDtype = "f32" } = options;
  const localGraph = localize(facts, sharded);
  const localized = isHalf(kvCacheDtype)
    ? storeCaches(localGraph, kvCacheDtype)
    : localGraph;
  const { graph: local, placed } = pages
    ? paginate(localized, pages)
    : localized;
  const { check = false, deduplicate, numerics = "exact" } = options;
  const expanded = expand(local, {
    placed,
    check,
    deduplicate,
    numerics,
    chunks: chunksOf(options),
  });
  const layouts = layoutParams(expanded, placed, {
    stored: options.weights ?? {},
    asFiled: options.tuning?.asFiled ?? [],
    activations: options.activations ?? "f32",
  });
  const { graph, buckets } = fillBuckets(expanded, layouts);
  const dispatched = dispatchedNodes(graph);
  const fusion = fuse(
    graph,
    (node) => isMatmul(node, layouts, dispatched),
    { dispatched, layouts, placed },
  );
  const lowering = startLowering({
    model: {
      graph,
      scalars,
      fusion,
      dispatched,
      buckets,
      layouts,
      returning: returningNodes(graph),
    },
    placed,
    options: {
      numerics,
      tile: options.tuning?.matmul ?? DEFAULT_TILE,
      tuning: options.tuning ?? {},
    },
  });
  const ports = lowerGraph(lowering);
  const limits = { ...GUARANTEED_LIMITS, ...options.limits };
  const { kernels } = lowering.draft;
  const steps = withSourceNames(mergeLaunches(
    lowering,
    overlap(waitForExchanges(lowering.draft.steps, kernels), kernels),
    limits,
  ));
  const memory = allocate(lowering.draft.buffers, steps, {
    kernels,
    ranks: placed.ranks,
    maxBytes: limits.maxBufferSize,
  });
  const plan = assemble(lowering, { ...ports, steps }, memory);
  if (!options.overLimits) checkLimits(plan, limits);
  return plan;
}

function dispatcherOf(
  { dispatcher, numerics }: CompileOptions,
): Dispatcher | undefined {
  if (dispatcher === undefined || numerics === "fast") return dispatcher;
  if (!dispatcherWords(dispatcher).reorders) return dispatcher;
  throw new ModelError(
    `Cannot use dispatcher '${dispatcher}': what ranks make of a token is added in another order than on one rank, and numerics are 'exact'. Compile with 'fast' numerics, or use 'allToAll'`,
  );
}

function chunksOf({ chunks = 1 }: CompileOptions): number {
  if (Number.isInteger(chunks) && chunks >= 1 && chunks <= MAX_CHUNKS) {
    return chunks;
  }
  throw new ModelError(
    `Cannot cut dispatches into ${chunks} chunks: give a whole number from 1 to ${MAX_CHUNKS}`,
  );
}
