/** Meshes of one replica, and what is known of them before anything is compiled. */

import type { ParamFacts } from "../../compiler/mod.ts";
import type { Mesh } from "../../spec/mesh.ts";
import { fileBytes, type ModelWeights } from "../summary/weights.ts";

/** How one replica of a model is placed on ranks: experts over both axes, tokens over `ep`, heads and all else over `tp`. */
export interface ReplicaMesh {
  readonly ep: number;
  readonly tp: number;
}

/** Ranks of a replica. */
export function replicaRanks({ ep, tp }: ReplicaMesh): number {
  return ep * tp;
}

/** The mesh as the compiler takes it. */
export function meshOf({ ep, tp }: ReplicaMesh): Mesh {
  return [
    ...ep > 1 || tp === 1 ? [{ name: "ep", size: ep }] : [],
    ...tp > 1 ? [{ name: "tp", size: tp }] : [],
  ];
}

/** `dp=8,ep=4,tp=2`; `dp` counts replicas. */
export function meshName(mesh: ReplicaMesh, replicas = 1): string {
  const axes = [{ name: "dp", size: replicas }, ...meshOf(mesh)]
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
  const most = Math.min(ranks, Math.max(1, experts));
  const meshes: ReplicaMesh[] = [];
  for (let tp = 1; tp <= Math.min(host, ranks); tp *= 2) {
    for (let ep = 1; ep * tp <= most; ep *= 2) meshes.push({ ep, tp });
  }
  if (most === ranks && !meshes.some(({ ep }) => ep === ranks)) {
    meshes.push({ ep: ranks, tp: 1 });
  }
  return meshes;
}

/** Bytes of weights that a rank holds at least: its experts, and its part of all else. */
export function leastWeights(
  { params, stands, storedAs }: ModelWeights,
  mesh: ReplicaMesh,
): number {
  const ranks = replicaRanks(mesh);
  const share = ({ expert, matrix }: ParamFacts) =>
    expert === undefined
      ? 1 / mesh.tp
      : Math.ceil(matrix.count / ranks) / matrix.count;
  return params.reduce(
    (n, param) =>
      n + stands.times(param.name) * fileBytes(param, storedAs) * share(param),
    0,
  );
}
