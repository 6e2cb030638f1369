/** Kernel variants of devices. Bits do not depend on them. */

export * from "./attention_matrices.ts";
export * from "./lanes.ts";
export * from "./matrices.ts";
export * from "./queries.ts";
export * from "./table.ts";
export * from "./tile.ts";
