/** Search for the best mesh, strategy and batch size of a model on a machine that need not be present. */

export type { Crossover } from "./crossover.ts";
export {
  type Objective,
  SEARCH_NUMERICS,
  type SearchPhase,
  type SearchTask,
  type ThrownOut,
} from "./evaluate.ts";
export { meshName, meshOf, type ReplicaMesh } from "./meshes.ts";
export type { CurvePoint } from "./curve.ts";
export type { Found } from "./found.ts";
export {
  type Batch,
  type ClaimedResults,
  helpSearch,
  type SearchHelper,
} from "./claims.ts";
export { knownOf, search, type Searched } from "./search.ts";
