/**
 * The experts of one token on a wide device: each workgroup makes the choices of the router for itself, and multiplies
 * the token by the weights of one of the chosen experts. Choices and sums have the order of separate kernels.
 */

import { id, u32 } from "../../../spec/kernel/build.ts";
import { matmulShape, teamsOf } from "../../tuning/lanes.ts";
import type { Expr, Kernel, Stmt } from "../kernel.ts";
import { kernelOf, local, wgsl } from "../kernel.ts";
import { fewRows } from "./matmul.ts";
import { columnsAndWeights } from "./columns.ts";
import { u } from "./left.ts";
import { normOfRow } from "./norm.ts";
import type { MatmulOptions } from "./options.ts";
import { decoded } from "./weights.ts";
import type { RouterOptions } from "../routing/router.ts";
import { choicesByLanes, shareOfLane } from "../routing/router_lanes.ts";

/** A matmul of one token by its experts. Row j of the result is that of choice j; the left operand has one row. */
export interface ChoicesMatmulOptions extends MatmulOptions {
  /** Its bindings are also bindings of the matmul. */
  readonly router: Omit<RouterOptions, "tokens">;
  /** Stores the expert and the weight of a choice, for other kernels. */
  choose(choice: Expr, expert: Expr, weight: Expr): readonly Stmt[];
}

/** Number of workgroups along y. The grid is [1, this, 1]. */
export function choicesGroups(o: ChoicesMatmulOptions): number {
  return o.router.rule.topK * partsOf(o);
}

/** Workgroups of a row. */
function partsOf(o: MatmulOptions): number {
  return Math.ceil(o.columns / matmulShape(o).columns);
}

/** Creates the matmul of one token by its experts. Teams sum different blocks of k. */
export function matmulOfChoices(options: ChoicesMatmulOptions): Kernel {
  const o = { ...options, ...decoded(options) };
  const { router, norm, tile } = o;
  const { topK } = router.rule;
  const of: RouterOptions = { ...router, tokens: u32(1) };
  const parts = partsOf(o);
  const results = o.adjacent ? [0, 1] : o.weights.map((_, i) => i);
  const used = o.epilogue(
    { row: u("row"), column: u("column"), expert: u("expert") },
    results.map((i) => local(`result${i}`, "f32")),
  );
  const columns = columnsAndWeights(o, {
    lanes: teamsOf(o).lanes,
    part: wgsl`(group.y % ${parts})`,
  });
  return kernelOf({
    name: o.name,
    workgroupSize: tile.lanes,
    bindings: o.bindings,
    body: wgsl`
      let i = group.x;
      if (i < 1) {
        ${choicesByLanes(of, tile.lanes)}
        if (group.y == 0 && lane < ${topK}) {
          ${shareOfLane(of)}
          let of_lane = best[lane];
          ${o.choose(id("local"), u("of_lane"), local("of_share", "f32"))}
        }
      }
      if (i < 1) {
        var<workgroup> best: array<u32, ${topK}>;
        let choice = group.y / ${parts};
        let expert = best[choice];
        let first = choice;
        let end = choice + 1;
        ${norm && normOfRow(o, norm)}
        ${columns}
        ${fewRows({ ...o, used }, 1)}
      }`,
  });
}
