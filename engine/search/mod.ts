/** Which mesh, strategy and batch of a model are best on a machine that need not be here. */

export type { Crossover } from "./crossover.ts";
export type { SearchPhase, SearchTask } from "./evaluate.ts";
export { meshName, meshOf, type ReplicaMesh } from "./meshes.ts";
export {
  type CurvePoint,
  type Found,
  type Objective,
  search,
  type Searched,
  type SearchOptions,
  type ThrownOut,
} from "./search.ts";
