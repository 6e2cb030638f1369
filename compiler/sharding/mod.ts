/**
 * Sharding: which elements of every value each rank holds, and what moves them. `readPlacement` reads what is asked for,
 * `shard` decides for every value and inserts what moves data, `localize` gives the graph that one rank executes.
 */

export { checkSizes, checkStates } from "./check.ts";
export { axisFacts } from "./local_axes.ts";
export { localize } from "./localize.ts";
export {
  type AxisPlacement,
  type Placement,
  readPlacement,
} from "./placement.ts";
export { shard } from "./shard.ts";
export { formatSharded } from "./text.ts";
export { recomputeViews } from "./recompute_views.ts";
