/** Meshes of one replica, and facts known before compilation. */

import type { ParamFacts, ZeroStage } from "../../../compiler/mod.ts";
import {
  type Mesh,
  meshFlag,
  meshSizes,
  NODE_AXIS,
  rankCount,
} from "../../../spec/mesh.ts";
import type { Strategy } from "../../../spec/strategies.ts";
import { fileBytes, type ModelWeights } from "../summary/weights.ts";

/** Mesh axes for models that fit in no other way. */
export interface MoreAxes {
  /** Pipeline stages. Default: 1. */
  readonly pp?: number;
  /** Ranks that share the positions of a sequence. Default: 1. */
  readonly cp?: number;
}

/**
 * Placement of one replica on ranks: experts over `ep`, `cp` and `tp`, tokens over `dp` and `ep`, positions of caches
 * over `cp`, heads and all else over `tp`. In training, copies of a model reduce their gradients and count as one
 * replica.
 */
export interface ReplicaMesh extends MoreAxes {
  /** Size of the mesh axis `dp`. Default: 1. */
  readonly dp?: number;
  readonly ep: number;
  readonly tp: number;
  /** Number of nodes that the ranks of `ep` are divided into, for exchanges in two levels. Default: 1. */
  readonly node?: number;
}

/** Number of ranks of a replica. */
export function replicaRanks(mesh: ReplicaMesh): number {
  return rankCount(meshOf(mesh));
}

/** The mesh in the compiler's format. */
export function meshOf(
  { dp = 1, ep: all, tp, node = 1, pp = 1, cp = 1 }: ReplicaMesh,
): Mesh {
  const ep = all / node;
  return [
    ...pp > 1 ? [{ name: "pp", size: pp }] : [],
    ...dp > 1 ? [{ name: "dp", size: dp }] : [],
    ...node > 1 ? [{ name: NODE_AXIS, size: node }] : [],
    ...ep > 1 || tp * cp === 1 ? [{ name: "ep", size: ep }] : [],
    ...cp > 1 ? [{ name: "cp", size: cp }] : [],
    ...tp > 1 ? [{ name: "tp", size: tp }] : [],
  ];
}

/** `dp=8,ep=4,tp=2`; `dp` counts replicas, or copies that are trained together. */
export function meshName(mesh: ReplicaMesh, replicas = 1): string {
  const { dp = 1 } = mesh;
  const axes = meshOf({ ...mesh, dp: dp * replicas })
    .filter(({ size }) => size > 1);
  return axes.length === 0 ? "1 device" : meshFlag(meshSizes(axes));
}

/** Number of ranks that entire experts are sharded over. */
export function expertRanks({ ep, tp, cp = 1 }: ReplicaMesh): number {
  return ep * cp * tp;
}

/**
 * Powers of two for `ep` and `tp`, and other numbers that use all ranks or those of a host. `tp` stays within a host,
 * and every rank has at least one expert, or with `slices` a slice of one.
 */
export function replicaMeshes(
  { ranks: all, host, experts, slices = false }: {
    readonly ranks: number;
    /** Ranks per host. */
    readonly host: number;
    /** Experts per layer; 0 if there are none. */
    readonly experts: number;
    /** Whether experts may be sliced over `tp`. Default: false. */
    readonly slices?: boolean;
  },
  more: MoreAxes = {},
): ReplicaMesh[] {
  const { pp = 1, cp = 1 } = more;
  const ranks = Math.floor(all / (pp * cp));
  const max = Math.max(1, Math.floor(experts / cp));
  const hasExperts = ({ ep, tp }: ReplicaMesh) =>
    ep * (slices && experts > 0 ? 1 : tp) <= max;
  const meshes: ReplicaMesh[] = [];
  for (let tp = 1; tp <= Math.min(host, ranks); tp *= 2) {
    for (let ep = 1; ep * tp <= ranks && hasExperts({ ep, tp }); ep *= 2) {
      meshes.push({ ep, tp, ...more });
    }
  }
  for (const all of new Set([Math.min(host, ranks), ranks])) {
    for (let tp = 1; tp <= Math.min(host, all); tp++) {
      const ep = all / tp;
      const known = meshes.some((mesh) => mesh.ep === ep && mesh.tp === tp);
      if (host % tp !== 0 || !Number.isInteger(ep) || known) continue;
      if (!hasExperts({ ep, tp })) continue;
      meshes.push({ ep, tp, ...more });
    }
  }
  return meshes;
}

/** The mesh with exchanges in two levels. Undefined: the experts are within a host, or hosts have unequal parts. */
export function overNodes(
  mesh: ReplicaMesh,
  host: number,
): ReplicaMesh | undefined {
  const { ep, tp, cp = 1 } = mesh;
  const node = ep * cp * tp / host;
  const fits = node > 1 && host > 1 && Number.isInteger(node) &&
    ep % node === 0;
  return fits ? { ...mesh, node } : undefined;
}

/** Meshes of a number of ranks for a training step: `dp` is the remainder of the other axes, in powers of two. */
export function trainingMeshes(
  size: Parameters<typeof replicaMeshes>[0],
  more: Pick<MoreAxes, "pp"> = {},
): ReplicaMesh[] {
  return replicaMeshes(size, more).flatMap((mesh) => {
    const dp = size.ranks / replicaRanks(mesh);
    return Number.isInteger(dp) ? [{ dp, ...mesh }] : [];
  });
}

/** Micro-batches of a training step: without stages one, else four for each stage. */
export function microBatchesOf({ pp = 1 }: ReplicaMesh): number {
  return pp > 1 ? 4 * pp : 1;
}

/** AdamW bytes per 16-bit weight element, including its master weight. */
const ADAMW_BYTES = 12;

/** Lower bound of the bytes of weights and optimizer state of a rank in training, with 16-bit weights. */
export function minTrainingBytes(
  { params, representatives }: ModelWeights,
  mesh: ReplicaMesh,
  { zero = 0, ...sliced }: Sliced & { readonly zero?: ZeroStage },
): number {
  const all = replicaRanks(mesh);
  return params.reduce((n, param) => {
    const held = heldShare(param, mesh, sliced);
    const bytes = 2 * (zero === 3 ? 1 / all : held) +
      ADAMW_BYTES * (zero > 0 ? 1 / all : held);
    return n + representatives.times(param.name) * param.elements * bytes;
  }, 0);
}

/** Whether experts are sliced. */
type Sliced = Pick<Strategy, "sliceExperts">;

/** Local fraction of a parameter: its experts, or slices of them, and for all else its shard over `tp`. */
function heldShare(
  { expert, matrix: { count } }: ParamFacts,
  mesh: ReplicaMesh,
  { sliceExperts = false }: Sliced,
): number {
  const { tp, pp = 1 } = mesh;
  if (expert === undefined) return 1 / tp / pp;
  const slices = sliceExperts ? tp : 1;
  return Math.ceil(slices * count / expertRanks(mesh)) / count / slices / pp;
}

/** Lower bound of the bytes of weights of a rank: its experts, and its shard of all else. */
export function minWeightBytes(
  { params, representatives, storedAs }: ModelWeights,
  mesh: ReplicaMesh,
  sliced: Sliced = {},
): number {
  return params.reduce(
    (n, param) =>
      n +
      representatives.times(param.name) * fileBytes(param, storedAs) *
        heldShare(param, mesh, sliced),
    0,
  );
}
