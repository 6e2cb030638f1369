/**
 * Sharding: the shard of every value on each rank, and collectives. `readPlacement` checks the requested placement,
 * `shard` assigns shardings and inserts collectives, and `localize` returns the graph of one rank.
 */

export { checkSizes, checkStates } from "./check.ts";
export { axisFacts } from "./local_axes.ts";
export { localize, type Localized } from "./localize.ts";
export {
  type AxisPlacement,
  type Placement,
  readPlacement,
} from "./placement.ts";
export { scheduleStages } from "./schedule.ts";
export { shard } from "./shard.ts";
export { stagesOf } from "./stages.ts";
export { recomputeViews } from "./recompute_views.ts";
