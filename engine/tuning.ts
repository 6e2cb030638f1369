/** Kernel variants that were measured to be fast, by what computes. `bench/` has the programs; bits do not depend on them. */

import type { Tuning } from "../compiler/mod.ts";
import type { Device } from "../runtime/mod.ts";

/**
 * Tuning by kind of device. The CPU engine keeps a tile of 4 rows and 4 vectors of columns in registers, and wants
 * one vector per workgroup, so that rows of activations are loaded once for all lanes. GPUs take the compiler's defaults.
 */
export const TUNING: { readonly [K in Device["kind"]]: Tuning } = {
  cpu: { matmul: { rows: 4, columns: 4, lanes: 4 } },
  gpu: {},
};
