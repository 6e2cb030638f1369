/** All passes from a graph to a plan. `local_graph.ts` lists the first, which end with the graph of one rank. */

import type { Activations } from "../spec/weights/activations.ts";
import { type FileDType, isHalf } from "../spec/dtype.ts";
import { ModelError } from "../spec/errors.ts";
import { GUARANTEED_LIMITS, MAX_CHUNKS } from "../spec/limits.ts";
import type { Operands } from "../spec/numerics.ts";
import type { Plan } from "../spec/plan/plan.ts";
import type { Strategy } from "../spec/strategies.ts";
import type { Natural } from "../spec/values.ts";
import { dispatchedNodes } from "./graph/routing/dispatched_nodes.ts";
import type { Scalars } from "./graph/gradients/gradients.ts";
import type { Graph } from "./graph/graph.ts";
import { routerParams } from "./graph/param_facts.ts";
import { localGraphOf } from "./local_graph.ts";
import { withSourceNames } from "./source_names.ts";
import { DEFAULT_TILE } from "./tuning/tile.ts";
import type { Tuning } from "./tuning/table.ts";
import { checkLimits } from "./passes/limits.ts";
import {
  addGatheredForm,
  allocate,
  assemble,
  type CacheDType,
  type ChoosePages,
  expand,
  fillBuckets,
  fuse,
  headMajorAxes,
  type HeldBuffer,
  isMatmul,
  layoutParams,
  lowerGraph,
  lowerHeld,
  mergeLaunches,
  nextAxesOf,
  overlap,
  type Pages,
  paginate,
  returningNodes,
  startLowering,
  storeCaches,
  waitForExchanges,
} from "./passes/mod.ts";
import type { Localized, Placement } from "./sharding/mod.ts";

/**
 * ZeRO stage: state sharded over ranks that have the same parameter, in equal parts of an axis. 0: none; 1: optimizer
 * state and update; 3: also the parameter, which is gathered before its use. Stage 2 of DeepSpeed is part of 1:
 * gradients are always reduce-scattered.
 */
export type ZeroStage = 0 | 1 | 3;

/** Options of `compile`. */
export interface CompileOptions extends Strategy {
  /** Mesh axes in order with their sizes: `{ dp: 2, ep: 2 }`. Default: one rank. */
  readonly mesh?: { readonly [meshAxis: string]: number };
  /** Axes of the model that are sharded over mesh axes. Default: by the names of the mesh axes, see `MESH_AXES`. */
  readonly place?: Placement;
  /** Stored dtype of source tensors, from the headers of the checkpoint. Default: the dtype of the parameter. */
  readonly weights?: { readonly [tensor: string]: FileDType };
  /**
   * Activations multiplied by packed weights of integers: f32, or quantized to blocks of 32 8-bit integers. Default:
   * f32.
   */
  readonly activations?: Activations;
  /** Limits to respect. Default: those that every WebGPU device guarantees. */
  readonly limits?: { readonly [limit: string]: Natural };
  /** Whether plans that exceed the limits are compiled; `limitProblems` lists the exceeded limits. Default: false. */
  readonly overLimits?: boolean;
  /**
   * Whether token ids are sent with every routing. The outputs `check.0`, `check.1`, … count choices that did not
   * return.
   */
  readonly check?: boolean;
  /**
   * Whether to add outputs `chosen.N` and `dropped.N`: the numbers of choices and of dropped choices of each routing
   * with a capacity.
   */
  readonly countDropped?: boolean;
  /**
   * Whether to add outputs `squares.PARAMETER`: sums of squares of the values that each parameter is contracted with,
   * for quantizers. Not available in training. As gradients, they differ between meshes in the last bits.
   */
  readonly recordSquares?: boolean;
  /**
   * Paged KV cache: `count` pages of `size` positions per rank. The input `pages`, i32 [sequence, block], is the page
   * table: the page on its rank of each block of `size` positions of a sequence. Layers with a window have fewer pages
   * and a separate table. Not available in training. Bits do not change. A function receives the number of ranks that
   * sequences are sharded over, and the positions of a sequence on a rank. Default: every sequence has memory for all
   * positions.
   */
  readonly pages?: Pages | ChoosePages;
  /**
   * KV cache dtype. `f16` and `bf16` round to nearest on write and halve the memory. Not available in training.
   * Default: f32.
   */
  readonly kvCacheDtype?: CacheDType;
  /** ZeRO stage of a training step. Bits do not depend on it. Default: 0. */
  readonly zero?: ZeroStage;
  /** Tuned kernel variants for the adapter. Default: portable variants. Bits do not depend on it. */
  readonly tuning?: Tuning;
}

/**
 * Compiles a traced graph whose lambdas have been lowered. Loads neither TypeScript nor a built-in module of Node.js,
 * so that it runs in browsers.
 */
export function compileLowered(
  traced: Graph,
  scalars: Scalars,
  options: CompileOptions = {},
): Plan {
  const { lowering, limits, pipeline } = prepare(traced, scalars, options);
  const ports = lowerGraph(lowering);
  const { kernels } = lowering.draft;
  const steps = withSourceNames(mergeLaunches(
    lowering,
    overlap(waitForExchanges(lowering.draft.steps, kernels), kernels),
    limits,
  ));
  const memory = allocate(lowering.draft.buffers, steps, {
    kernels,
    mesh: lowering.placed.mesh,
    maxBytes: limits.maxBufferSize,
  });
  const assembled = assemble(lowering, { ...ports, steps }, memory);
  const plan = pipeline ? { ...assembled, pipeline } : assembled;
  if (!options.overLimits) checkLimits(plan, limits);
  return plan;
}

/**
 * The buffers of weights and states of a plan, with their bytes on every rank, without creating its kernels. Buffers of
 * pipeline stages are only on the ranks of the stage. Throws as `compile`, except for kernels and limits.
 */
export function heldBuffers(
  traced: Graph,
  options: CompileOptions = {},
): HeldBuffer[] {
  return lowerHeld(prepare(traced, new Map(), options).lowering);
}

/** The passes before kernels: the lowering that they start, the limits of kernels, and the stages of the schedule. */
function prepare(traced: Graph, scalars: Scalars, options: CompileOptions) {
  const { check = false, deduplicate, numerics = "exact", wire = "f32" } =
    options;
  const { pipeline, ...localized } = localGraphOf(traced, options);
  const { graph: local, placed } = addGatheredForm(
    storeStates(localized, options),
  );
  const expanded = expand(local, {
    placed,
    check,
    deduplicate,
    receiveRows: options.receiveRows,
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
  const limits = { ...GUARANTEED_LIMITS, ...options.limits };
  const fusion = fuse(
    graph,
    (node) => isMatmul(node, layouts, dispatched),
    {
      dispatched,
      layouts,
      placed,
      maxBindings: limits.maxStorageBuffersPerShaderStage,
      joins: options.tuning?.wideRows === true,
    },
  );
  const lowering = startLowering({
    model: {
      graph,
      scalars,
      fusion,
      dispatched,
      buckets,
      layouts,
      nextAxes: nextAxesOf(graph, layouts),
      cacheAxes: options.tuning?.headMajor ? headMajorAxes(graph) : new Map(),
      routers: routerParams(graph),
      returning: returningNodes(graph),
    },
    placed,
    options: {
      numerics,
      wire,
      operands: operandsOf(traced, options),
      tile: options.tuning?.matmul ?? DEFAULT_TILE,
      tuning: options.tuning ?? {},
      maxBinding: limits.maxStorageBufferBindingSize,
      maxBindings: limits.maxStorageBuffersPerShaderStage,
      maxShared: limits.maxComputeWorkgroupStorageSize,
      maxLanes: Math.min(
        limits.maxComputeInvocationsPerWorkgroup,
        limits.maxComputeWorkgroupSizeX,
      ),
    },
  });
  return { lowering, limits, pipeline };
}

/** Stores caches of a local graph in the requested dtype and pages. */
function storeStates(
  local: Localized,
  { pages, kvCacheDtype = "f32" }: CompileOptions,
): Localized {
  const stored = isHalf(kvCacheDtype)
    ? storeCaches(local, kvCacheDtype)
    : local;
  return pages ? paginate(stored, pages) : stored;
}

/** The operands of matmuls of many rows. Throws ModelError if 16-bit operands are given and not possible. */
function operandsOf(
  { nodes }: Graph,
  { operands, numerics = "exact", tuning = {} }: CompileOptions,
): Operands {
  const trains = nodes.some(({ phase }) => phase !== undefined);
  const isPossible = numerics === "fast" && !trains;
  if (operands === "f16" && !isPossible) {
    throw new ModelError(
      trains
        ? "Cannot train with operands 'f16': gradients are computed in f32. Use operands 'f32'"
        : "Cannot use operands 'f16': numerics are 'exact'. Compile with 'fast' numerics, or use operands 'f32'",
    );
  }
  return isPossible ? operands ?? tuning.operands ?? "f32" : "f32";
}

function chunksOf({ chunks = 1 }: CompileOptions): number {
  if (Number.isInteger(chunks) && chunks >= 1 && chunks <= MAX_CHUNKS) {
    return chunks;
  }
  throw new ModelError(
    `Cannot split dispatches into ${chunks} chunks: the number is not whole or not from 1 to ${MAX_CHUNKS}. Give one that is`,
  );
}
