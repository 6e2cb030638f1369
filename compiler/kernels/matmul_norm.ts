/** The RMS norm of the left operand of a matmul of one row. */

import { invariant } from "../../spec/errors.ts";
import { clamped } from "../../spec/kernel/guards.ts";
import type { KernelText } from "./kernel.ts";
import { GROUP_XZ, wgsl } from "./kernel.ts";
import { u } from "./matmul_left.ts";
import type { MatmulOptions } from "./matmul_options.ts";
import { rmsScale } from "./rows.ts";

/** Declares `norm_scale` of the only row, in every lane of a workgroup. */
export function normOfRow(
  o: MatmulOptions,
  { load, store, ...norm }: NonNullable<MatmulOptions["norm"]>,
): KernelText {
  const { lanes } = o.tile;
  const stored = store && wgsl`
    if (${GROUP_XZ} == 0 && group.y == 0) {
      for (var norm_at = lane; norm_at < ${norm.length}; norm_at += ${lanes}) {
        ${store(u("norm_row"), u("norm_at"))}
      }
    }`;
  invariant(o.tile.rows === 1, "a norm is of one row");
  return wgsl`
    let norm_row = ${o.leftRow(clamped(u("first"), u("end")))};
    ${
    rmsScale({
      ...norm,
      wide: true,
      lanes,
      prefix: "norm_",
      load: (_, i) => load(u("norm_row"), i),
    })
  }
    ${stored}`;
}
