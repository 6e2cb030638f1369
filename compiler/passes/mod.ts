/**
 * The passes, in order. Each file says what holds after it.
 *
 * | pass | from | to |
 * |---|---|---|
 * | `simplify` | graph | graph: equal nodes are one |
 * | `placeAxes` | graph, mesh | every axis has a place on the mesh |
 * | `gatherWhole` | graph, places | what needs all of an axis has it |
 * | `checkPlaced` | graph, places | the same: what no lowering could do is refused |
 * | `sumPartials` | graph, places | sums over what ranks hold parts of are added up where they are needed whole |
 * | `fillBuckets` | graph | graph: collectives of one kind and group are one |
 * | `layoutParams` | graph, places | every parameter has a memory layout and its share of experts |
 * | `fuse` | graph | every node is stored, a view, or part of another's kernel |
 * | `lowerGraph` | all of these | kernels, buffers, steps with explicit collectives |
 * | `overlap` | kernels, steps | steps: what does not depend on an exchange is done while it is under way |
 * | `allocate` | buffers, steps | memory: scratch buffers at offsets in an arena, shared where they are not live at once |
 * | `assemble` | all of these | the plan, its kernels declared for the memory that they are bound to |
 */

export { allocate } from "./allocate.ts";
export { fillBuckets } from "./buckets.ts";
export { checkPlaced } from "./check_placed.ts";
export { fuse } from "./fuse.ts";
export { gatherWhole } from "./gather.ts";
export { type AxisPlacement, placeAxes, type Placement } from "./place.ts";
export { overlap } from "./overlap.ts";
export { assemble } from "./assemble.ts";
export { startLowering } from "./lower/context.ts";
export { lowerGraph } from "./lower/mod.ts";
export {
  dispatchedNodes,
  layoutParams,
  returningNodes,
} from "./lower/params.ts";
export { isMatmul } from "./lower/dot.ts";
export { sumPartials } from "./partial.ts";
export { simplify } from "./simplify.ts";
