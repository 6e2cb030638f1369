/** The logical grid of ranks, and groups along its axes. */

import { PlacementError } from "./errors.ts";
import type {
  Name,
  Natural,
  RankCount,
  Short,
  ShortNonEmpty,
  ShortRecord,
} from "./values.ts";

/** One axis of the mesh. */
export interface MeshAxis {
  readonly name: Name;
  readonly size: RankCount;
}

/** Mesh axes in order; rank numbers are row-major over them. */
export type Mesh = Short<MeshAxis>;

/** Sizes of mesh axes by name, in order, as users write them. */
export interface MeshSizes {
  readonly [axis: string]: number;
}

/** A mesh as users write it. */
export function meshSizes(mesh: Mesh): MeshSizes {
  return Object.fromEntries(mesh.map(({ name, size }) => [name, size]));
}

/** The axes of a mesh as users write it. Throws PlacementError for other values, which untyped callers give. */
export function meshAxes(sizes: MeshSizes): Mesh {
  if (
    typeof sizes !== "object" || sizes === null || Symbol.iterator in sizes
  ) {
    throw new PlacementError(
      "Cannot read the mesh: it is not an object of sizes. Give one, such as { ep: 4 }",
    );
  }
  return Object.entries(sizes).map(([name, size]) => ({ name, size }));
}

/** The value of `--mesh`: `ep=4,tp=2`. */
export function meshFlag(sizes: MeshSizes): string {
  return Object.entries(sizes).map((axis) => axis.join("=")).join(",");
}

/** Axes that are conventionally sharded over a mesh axis. */
export type MeshRole =
  | "tokens"
  | "experts"
  | "heads"
  | "hidden"
  | "vocabulary"
  | "context"
  | "layers";

/**
 * Mesh axes with a default placement, and the axes sharded over them: data, expert, tensor and context parallelism, and
 * with `node` expert parallelism over nodes. Layers are not an axis of a tensor: each is on one stage, a coordinate of
 * `pp` (pipeline parallelism).
 */
export const MESH_AXES: {
  readonly [name: string]: readonly MeshRole[] | undefined;
} = {
  dp: ["tokens"],
  node: ["tokens", "experts"],
  ep: ["tokens", "experts"],
  tp: ["heads", "hidden", "vocabulary", "experts"],
  cp: ["context", "experts"],
  pp: ["layers"],
};

/** The mesh axis of nodes: exchanges over it and others have two levels, between nodes and within a node. */
export const NODE_AXIS = "node";

/** Axes sharded over a mesh axis by default; none for other names. */
export function meshRoles(name: string): readonly MeshRole[] {
  return MESH_AXES[name] ?? [];
}

/** The mesh axis whose coordinates are pipeline stages. Undefined: the mesh has none. */
export function stageAxis(mesh: Mesh): MeshAxis | undefined {
  return mesh.find(({ name, size }) =>
    size > 1 && meshRoles(name).includes("layers")
  );
}

/** Ranks by their coordinates on some mesh axes: those at any of the coordinates that are listed for each axis. */
export type RanksAt = ShortRecord<ShortNonEmpty<Natural>>;

/** The ranks of a step or a buffer. */
export type RankSet = "all" | RanksAt;

/** Whether a rank is in a set. */
export function isIn(set: RankSet, mesh: Mesh, rank: number): boolean {
  return set === "all" ||
    Object.entries(set).every(([axis, at]) =>
      at.includes(groupRankOf(mesh, rank, [axis]))
    );
}

/** `` for all ranks, else `on pp 0 1` or `on pp 0, cp 2`. */
export function rankSetText(set: RankSet): string {
  if (set === "all") return "";
  const axes = Object.entries(set).map(([axis, at]) =>
    `${axis} ${at.join(" ")}`
  );
  return `on ${axes.join(", ")}`;
}

/** Number of ranks of a mesh. */
export function rankCount(mesh: Mesh): number {
  return mesh.reduce((product, axis) => product * axis.size, 1);
}

/** The coordinate of `rank` on each mesh axis. */
export function coordinates(mesh: Mesh, rank: number): number[] {
  const result = new Array<number>(mesh.length).fill(0);
  for (let i = mesh.length - 1, rest = rank; i >= 0; i--) {
    const size = mesh[i]!.size;
    result[i] = rest % size;
    rest = Math.floor(rest / size);
  }
  return result;
}

/** The rank's index in its group over the mesh axes `over`: row-major in the order of `over`. */
export function groupRankOf(
  mesh: Mesh,
  rank: number,
  over: readonly string[],
): number {
  const at = coordinates(mesh, rank);
  return over.reduce((groupRank, name) => {
    const i = mesh.findIndex((axis) => axis.name === name);
    return groupRank * mesh[i]!.size + at[i]!;
  }, 0);
}

/** `groupRankOf` of every rank. */
export function groupRanks(mesh: Mesh, over: readonly string[]): number[] {
  return Array.from(
    { length: rankCount(mesh) },
    (_, rank) => groupRankOf(mesh, rank, over),
  );
}

/** Size of a group over the mesh axes `over`. */
export function groupSizeOf(mesh: Mesh, over: readonly string[]): number {
  return over.reduce(
    (n, name) => n * (mesh.find((axis) => axis.name === name)?.size ?? 1),
    1,
  );
}

/** The ranks that differ from `rank` only on the mesh axes `over`, in the order of their group ranks. */
export function groupOf(
  mesh: Mesh,
  rank: number,
  over: readonly string[],
): number[] {
  // Stride in the list of ranks along each mesh axis.
  const strides = new Map<string, number>();
  let stride = 1;
  for (const { name, size } of mesh.toReversed()) {
    strides.set(name, stride);
    stride *= size;
  }
  const at = coordinates(mesh, rank);
  const axes = mesh.map(({ name, size }, i) => ({ name, size, at: at[i]! }))
    .filter(({ name }) => over.includes(name));
  const first = axes.reduce(
    (r, { name, at }) => r - at * strides.get(name)!,
    rank,
  );
  return over.reduce<number[]>((group, name) => {
    const { size } = axes.find((axis) => axis.name === name)!;
    const apart = strides.get(name)!;
    return group.flatMap((r) =>
      Array.from({ length: size }, (_, i) => r + i * apart)
    );
  }, [first]);
}

/** Sizes of contiguous blocks; the first `n mod parts` are longer by one. */
export function blockSizes(n: number, parts: number): number[] {
  const base = Math.floor(n / parts);
  return Array.from(
    { length: parts },
    (_, i) => base + (i < n % parts ? 1 : 0),
  );
}
