/** One invocation for each index: maps, copies, anything without a sum across elements. */

export * from "../../spec/kernel/elementwise.ts";
