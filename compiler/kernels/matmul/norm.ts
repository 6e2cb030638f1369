/** The RMS norm of the left operand of a matmul of one row. */

import { invariant } from "../../../spec/errors.ts";
import { clamped } from "../../../spec/kernel/guards.ts";
import { add, let_, u32 } from "../../../spec/kernel/build.ts";
import { registerName } from "../../../spec/kernel/register_name.ts";
import { range } from "../../../spec/range.ts";
import type { KernelText } from "../kernel.ts";
import { GROUP_XZ, local, wgsl } from "../kernel.ts";
import { u } from "./left.ts";
import type { MatmulOptions } from "./options.ts";
import { ADJACENT } from "../pieces/adjacent.ts";
import { SUM_BLOCK } from "../pieces/blocked_sum.ts";
import { rmsScale } from "../rows.ts";

/** Words of workgroup memory for a norm: its block sums and their sum. */
export function wordsOfNorm(length: number): number {
  return Math.ceil(length / SUM_BLOCK) + 1;
}

/**
 * Declares `norm_scale` of the only row, in every lane of a workgroup. `meanwhile`: loads that are in flight while one
 * lane adds the block sums.
 */
export function normOfRow(
  o: MatmulOptions,
  { load, adjacent, store, ...norm }: NonNullable<MatmulOptions["norm"]>,
  meanwhile?: KernelText,
): KernelText {
  const { left, leftAdjacent, tile: { lanes } } = o;
  const [row, at] = [u("norm_row"), u("norm_at")];
  const together = leftAdjacent ? ADJACENT : 1;
  const names = range(together).map((n) => registerName("normed", [n]));
  const stored = store && wgsl`
    if (${GROUP_XZ} == 0 && group.y == 0) {
      for (var norm_at = lane * ${together}; norm_at < ${norm.length}; norm_at += ${
    lanes * together
  }) {
        ${leftAdjacent?.(row, at, names) ?? [let_(names[0]!, left(row, at))]}
        ${
    names.flatMap((name, n) => store(row, add(at, u32(n)), local(name, "f32")))
  }
      }
    }`;
  invariant(o.tile.rows === 1, "a norm is of one row");
  return wgsl`
    let norm_row = ${o.leftRow(clamped(u("first"), u("end")))};
    ${
    rmsScale({
      ...norm,
      wide: true,
      isPart: true,
      lanes,
      prefix: "norm_",
      load: (_, i) => load(row, i),
      adjacent: adjacent && ((_, i, names) => adjacent(row, i, names)),
      meanwhile,
    })
  }
    ${stored}`;
}
