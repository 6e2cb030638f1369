/** What the kernels of a capacity have in common. Each has a file: `mark`, `slots`, `keep`, `marks`. */

import type { RoutingRule } from "../graph/graph.ts";
import { type Expr } from "./kernel.ts";

/** Parameters of all kernels of a capacity. */
export interface CapacityOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
}

/** Where routing groups are: contiguous ones of a length, or as an i32 says, when tokens are ordered by it. */
export type GroupsBy = Expr | "tensor";
