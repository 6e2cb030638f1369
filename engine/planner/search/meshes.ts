/** Meshes of one replica, and what is known of them before anything is compiled. */

import type { ParamFacts, ZeroStage } from "../../../compiler/mod.ts";
import type { Mesh } from "../../../spec/mesh.ts";
import { fileBytes, type ModelWeights } from "../summary/weights.ts";

/**
 * How one replica of a model is placed on ranks: experts over `ep` and `tp`, tokens over `dp` and `ep`, heads and all else over
 * `tp`. Copies of a model that is trained add up their gradients, and are one replica.
 */
export interface ReplicaMesh {
  /** Default: 1. */
  readonly dp?: number;
  readonly ep: number;
  readonly tp: number;
}

/** Ranks of a replica. */
export function replicaRanks({ dp = 1, ep, tp }: ReplicaMesh): number {
  return dp * ep * tp;
}

/** The mesh as the compiler takes it. */
export function meshOf({ dp = 1, ep, tp }: ReplicaMesh): Mesh {
  return [
    ...dp > 1 ? [{ name: "dp", size: dp }] : [],
    ...ep > 1 || tp === 1 ? [{ name: "ep", size: ep }] : [],
    ...tp > 1 ? [{ name: "tp", size: tp }] : [],
  ];
}

/** `dp=8,ep=4,tp=2`; `dp` counts replicas, or copies that are trained together. */
export function meshName(mesh: ReplicaMesh, replicas = 1): string {
  const { dp = 1 } = mesh;
  const axes = meshOf({ ...mesh, dp: dp * replicas })
    .filter(({ size }) => size > 1);
  return axes.length === 0
    ? "1 device"
    : axes.map(({ name, size }) => `${name}=${size}`).join(",");
}

/** Powers of two for `ep` and `tp`, and all ranks as `ep`. `tp` stays within a host, and a rank has an expert at least. */
export function replicaMeshes(
  { ranks, host, experts }: {
    readonly ranks: number;
    /** Ranks of a host. */
    readonly host: number;
    /** Of a layer; 0 where there are none. */
    readonly experts: number;
  },
): ReplicaMesh[] {
  const max = Math.min(ranks, Math.max(1, experts));
  const meshes: ReplicaMesh[] = [];
  for (let tp = 1; tp <= Math.min(host, ranks); tp *= 2) {
    for (let ep = 1; ep * tp <= max; ep *= 2) meshes.push({ ep, tp });
  }
  if (max === ranks && !meshes.some(({ ep }) => ep === ranks)) {
    meshes.push({ ep: ranks, tp: 1 });
  }
  return meshes;
}

/** Meshes of equally many ranks for a step of training: `dp` is what `ep` and `tp` leave, in powers of two. */
export function trainingMeshes(
  size: Parameters<typeof replicaMeshes>[0],
): ReplicaMesh[] {
  return replicaMeshes(size).flatMap(({ ep, tp }) => {
    const dp = size.ranks / (ep * tp);
    return Number.isInteger(dp) ? [{ dp, ep, tp }] : [];
  });
}

/** Bytes of an element that AdamW keeps beside a weight in 16 bits, its master among them. */
const ADAMW_BYTES = 12;

/** Bytes of weights and optimizer state that a rank holds at least while it trains, weights in 16 bits. */
export function leastTrained(
  { params, stands }: ModelWeights,
  mesh: ReplicaMesh,
  { zero = 0 }: { readonly zero?: ZeroStage },
): number {
  const all = replicaRanks(mesh);
  return params.reduce((n, param) => {
    const held = heldShare(param, mesh);
    const bytes = 2 * (zero === 3 ? 1 / all : held) +
      ADAMW_BYTES * (zero > 0 ? 1 / all : held);
    return n + stands.times(param.name) * param.elements * bytes;
  }, 0);
}

/** The part of a parameter that a rank holds: its experts, and of all else its share over `tp`. */
function heldShare(
  { expert, matrix }: ParamFacts,
  { ep, tp }: ReplicaMesh,
): number {
  return expert === undefined
    ? 1 / tp
    : Math.ceil(matrix.count / (ep * tp)) / matrix.count;
}

/** Bytes of weights that a rank holds at least: its experts, and its part of all else. */
export function leastWeights(
  { params, stands, storedAs }: ModelWeights,
  mesh: ReplicaMesh,
): number {
  return params.reduce(
    (n, param) =>
      n +
      stands.times(param.name) * fileBytes(param, storedAs) *
        heldShare(param, mesh),
    0,
  );
}
