/** Which mesh, strategy and batch of a model are best on a machine that need not be here. */

export type { Crossover } from "./crossover.ts";
export type { SearchPhase, SearchTask, ThrownOut } from "./evaluate.ts";
export { meshName, meshOf, type ReplicaMesh } from "./meshes.ts";
export type { CurvePoint } from "./curve.ts";
export type { Found, Objective } from "./found.ts";
export { search, type Searched, type SearchOptions } from "./search.ts";
