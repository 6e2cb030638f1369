/** Common parts of kernels: text, trees, construction, launch grids, dynamic lengths. */

export { local } from "../../spec/kernel/build.ts";
export * from "../../spec/kernel/elementwise.ts";
export * from "../../spec/kernel/make.ts";
export { expr } from "../../spec/kernel/text/resolve.ts";
export {
  type Hole,
  type KernelText,
  type Statements,
  wgsl,
} from "../../spec/kernel/text/text.ts";
export type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
