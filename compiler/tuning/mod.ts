/** Which variants of kernels devices take: facts about devices, not about kernels. Bits do not depend on them. */

export * from "./lanes.ts";
export * from "./queries.ts";
export * from "./table.ts";
export * from "./tile.ts";
