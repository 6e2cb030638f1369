/** Kernels. Each file states the bindings of its kernel and the function of its launch grid. */

export * from "./add_parts.ts";
export * from "./routing/assign.ts";
export * from "./routing/assign_few.ts";
export * from "./attention/attention.ts";
export * from "./routing/capacity.ts";
export * from "./kernel.ts";
export * from "./matmul/matmul.ts";
export * from "./attention/matrices.ts";
export * from "./matmul/matrices.ts";
export * from "./matmul/options.ts";
export * from "./routing/order_tokens.ts";
export * from "./routing/permute.ts";
export * from "./reduce.ts";
export * from "./routing/regroup.ts";
export * from "./routing/router.ts";
export * from "./routing/router_lanes.ts";
export * from "./rows.ts";
export * from "./routing/slots.ts";
export * from "./top_k.ts";
