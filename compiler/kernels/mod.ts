/** Kernels. Each file states the bindings of its kernel and the function of its launch grid. */

export * from "./add_parts.ts";
export * from "./assign.ts";
export * from "./assign_few.ts";
export * from "./attention.ts";
export * from "./capacity.ts";
export * from "./kernel.ts";
export * from "./matmul.ts";
export * from "./attention_matrices.ts";
export * from "./matmul_matrices.ts";
export * from "./matmul_options.ts";
export * from "./order_tokens.ts";
export * from "./permute.ts";
export * from "./reduce.ts";
export * from "./regroup.ts";
export * from "./router.ts";
export * from "./router_lanes.ts";
export * from "./rows.ts";
export * from "./slots.ts";
export * from "./top_k.ts";
