/**
 * The passes, in order. Each file states its postcondition.
 *
 * | pass | from | to |
 * |---|---|---|
 * | `recordSquares`, `countDropped` | graph | graph with outputs for quantizers and routings, if requested |
 * | `roundExchanges` | graph | graph: rows are rounded before dispatch and combine, if they are sent in fewer bits |
 * | `simplify` | graph | graph: equal nodes are one |
 * | `recomputeViews` | graph | graph: ZeRO-3 gathers parameters a second time in the backward pass |
 * | `readPlacement` | graph, mesh | the mesh axes that axes of the model are sharded over |
 * | `shard` | graph, placement | graph: every value has a sharding, and resharding is explicit |
 * | `scheduleStages` | sharded graph | sharded graph in the order of the pipeline schedule |
 * | `localize` | sharded graph | graph over local axes: what one rank holds |
 * | `storeCaches` | local graph | local graph: caches in 16 bits, if requested |
 * | `paginate` | local graph | local graph: caches in pages, if requested |
 * | `addGatheredForm` | local graph | local graph: attention over shared positions can also read gathered keys |
 * | `expand` | graph | graph: dispatch and combine are their parts, in chunks if requested, with explicit exchanges |
 * | `layoutParams` | graph, mesh | every parameter has a memory layout |
 * | `fillBuckets` | graph | graph: collectives of one kind and group are one |
 * | `fuse` | graph | every node is stored, a view, or part of another's kernel |
 * | `lowerGraph` | all of these | kernels, buffers, steps with explicit collectives |
 * | `waitForExchanges` | steps | steps: an asynchronous exchange is awaited before its result is used |
 * | `overlap` | kernels, steps | steps: launches independent of an exchange run while it is in flight |
 * | `mergeLaunches` | kernels, steps | steps: independent launches are merged; inputs are stored after the lengths if
 * bindings do not suffice |
 * | `withSourceNames` | steps | steps: source positions without folders of this machine |
 * | `allocate` | buffers, steps | memory: offsets of scratch buffers in an arena; buffers share memory unless they are
 * live at once |
 * | `assemble` | all of these | the plan, with kernels declared for the memory that they are bound to |
 */

export { allocate } from "./allocate.ts";
export { fillBuckets } from "./buckets.ts";
export { fuse } from "./fuse.ts";
export { type ChoosePages, type Pages, paginate } from "./paginate.ts";
export { type CacheDType, storeCaches } from "./store_caches.ts";
export { expand } from "./expand.ts";
export { addGatheredForm } from "./add_gathered_form.ts";
export { overlap, waitForExchanges } from "./overlap.ts";
export { mergeLaunches } from "./merge_launches.ts";
export { assemble } from "./assemble.ts";
export { startLowering } from "./lower/context.ts";
export { lowerGraph } from "./lower/mod.ts";
export { type HeldBuffer, lowerHeld } from "./lower/held.ts";
export { headMajorAxes } from "./lower/head_major.ts";
export {
  layoutParams,
  nextAxesOf,
  returningNodes,
} from "./lower/params/params.ts";
export { isMatmul } from "./lower/matmul/is_matmul.ts";
export { simplify } from "./simplify.ts";
