/** Measured fast kernel variants by device. `bench/` contains the programs; bits do not depend on them. */

import { PACKED_DTYPES } from "../../spec/weights/packed.ts";
import type { MatmulTile, TuningTable } from "../../compiler/mod.ts";
import type { HostKind, SelectedDevices } from "../devices.ts";
import type { SavedTunings } from "./saved.ts";

/** Kind of device: a CPU device, by WebAssembly or by C, a GPU, or a software adapter. */
export type Computer = HostKind | "gpu" | "software";

/** Good everywhere: the compiler's default. */
const PLAIN: MatmulTile = { rows: 4, columns: 4, lanes: 32 };

/** For vectors of 4 lanes in 16 registers: 8 sums and the loads of one index; weights are loaded once for 64 rows. */
const SHARED: MatmulTile = {
  rows: 4,
  columns: 2,
  lanes: 64,
  split: 16,
  right: "workgroup",
};
const SHARED_PAIR: MatmulTile = { ...SHARED, rows: 2, lanes: 128, split: 32 };

/**
 * For vectors of 16 lanes in 32 registers: weights are loaded along k and transposed once for the rows of 16 vectors.
 */
const PANELS: MatmulTile = {
  rows: 8,
  columns: 2,
  lanes: 256,
  split: 16,
  right: "workgroup",
};

/**
 * For devices with thousands of lanes: if rows are few, teams of 4 lanes sum different blocks of k for 16 columns, so
 * that enough loads are in flight on every core. Every WebGPU device has 256 lanes and 16 KiB of workgroup memory; the
 * sums of 4 rows fill that memory.
 */
const WIDE: MatmulTile = {
  rows: 4,
  columns: 4,
  lanes: 256,
  split: 64,
  right: "vector",
};

/** Dtypes of weights that can keep the layout of their files. */
const FILED = ["f32", "bf16", "f16", ...PACKED_DTYPES] as const;

/**
 * Default tuning. CPU devices have a tile of rows and vectors of columns in registers, and load weights once for many
 * such tiles. C also transposes weights on load, so they can keep the layout of their files. Software adapters load one
 * invocation after another and need vectors of weights and many rows each; their compilers are slow.
 */
export const TUNING: { readonly [K in Computer]: TuningTable } = {
  cpu: {
    matmul: SHARED,
    pair: SHARED_PAIR,
    attention: 4,
    bytes: "signed",
  },
  native: {
    matmul: PANELS,
    pair: { ...PANELS, columns: 1 },
    asFiled: FILED,
    bytes: "unsigned",
    attention: 8,
    headMajor: true,
    recurrence: 2,
  },
  gpu: {
    matmul: WIDE,
    pair: { ...WIDE, rows: 8, columns: 2, split: 32 },
    attention: 8,
    splitKeys: 8,
    wideRows: true,
    operands: "f16",
  },
  software: {
    matmul: {
      rows: 8,
      columns: 4,
      lanes: 8,
      right: "vector",
      code: "small",
    },
  },
};

/**
 * Variants for native devices with vectors of 8 lanes, as with AVX2. Integer sums of 4 rows and 2 columns, their scaled
 * sums and a product fit into 16 registers better than those of 8 rows.
 */
const EIGHT_LANES: TuningTable = {
  matmul: { ...PANELS, vector: 8 },
  pair: { ...PANELS, columns: 1, vector: 8 },
  quantized: { ...PANELS, rows: 4, split: 32, vector: 8 },
  recurrence: 4,
};

/** Kind of the selected devices. */
export function computerOf(
  { host, software = false }: Pick<SelectedDevices, "host" | "software">,
): Computer {
  return host ?? (software ? "software" : "gpu");
}

/** The default tile of matmuls. */
export function tileOf(computer: Computer): MatmulTile {
  return TUNING[computer].matmul ?? PLAIN;
}

/**
 * The tuning of selected devices: a saved one, or the default for such devices. With a limit of expert memory, weights
 * keep the layout of their files, so that experts are read from there.
 */
export function tuningOf(
  selected: Pick<
    SelectedDevices,
    "host" | "software" | "pairs" | "computer" | "world" | "lanes"
  >,
  { tunings = {}, expertMemory }: {
    readonly tunings?: SavedTunings | undefined;
    readonly expertMemory?: number | "auto" | undefined;
  },
): TuningTable {
  const { world, pairs, lanes, computer } = selected;
  const common: TuningTable = {
    ...expertMemory === undefined ? {} : { asFiled: FILED },
    ...TUNING[computerOf(selected)],
  };
  // Processes must compile the same plan, but each may have a different file or processor.
  return world ? common : {
    ...common,
    ...pairs ? { bytes: "pairs" } : {},
    ...lanes === 8 ? EIGHT_LANES : {},
    ...tunings[computer],
  };
}
