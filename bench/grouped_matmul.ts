/**
 * The compiler's grouped matmul against hand-written WGSL products on one adapter: 1,024 rows over 8 experts, evenly
 * and skewed, times 512 x 1024. Flags: `--adapter NUMBER` (default 0), `--runs N`, `--out FILE`. `--tiles
 * 8x4x8,8x4x8_vector_small,…` measures tiles. `--search` first finds the best variant among all that a tuner
 * measures, with any height.
 */

import { parseArgs } from "node:util";
import { matmul } from "../compiler/kernels/mod.ts";
import {
  matmulGrid,
  type MatmulTile,
  tileHeight,
  tileName,
} from "../compiler/tuning/mod.ts";
import { variantsOf } from "../engine/tune/variants.ts";
import { tileOf } from "../engine/tune/tuning.ts";
import { createGpuDevice, type DeviceBuffer, openGpu } from "../runtime/mod.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import type { Binding, Kernel } from "../spec/kernel/tree.ts";
import { evaluateSize } from "../spec/size.ts";
import { interleaved, median } from "./measure.ts";
import { checkClose } from "./peers/run.ts";
import { report, timingOf } from "./results.ts";
import { randomValues } from "./session.ts";
import {
  HAND_WRITTEN,
  type HandWritten,
  handWrittenGrid,
  handWrittenMatmul,
  variantName,
} from "./wgsl_matmul.ts";

const SIZES = { m: 1024, k: 512, n: 1024 };
const FLOPS = 2 * SIZES.m * SIZES.k * SIZES.n;

/** Rows of each expert. */
const LOADS: { readonly [load: string]: readonly number[] } = {
  balanced: new Array<number>(8).fill(128),
  skewed: [403, 255, 161, 97, 59, 33, 16, 0],
};

const { values: flags } = parseArgs({
  options: {
    adapter: { type: "string", default: "0" },
    runs: { type: "string", default: "15" },
    out: { type: "string" },
    tiles: { type: "string" },
    search: { type: "boolean", default: false },
  },
});

const BINDINGS: { readonly [name: string]: Binding } = {
  x: { name: "x", type: "f32", access: "read" },
  w: { name: "w", type: "f32", access: "read" },
  tiles: { name: "tiles", type: "u32", access: "read" },
  y: { name: "y", type: "f32", access: "write" },
};

/** A kernel, its device and its data. */
interface Candidate {
  readonly tree: Kernel;
  /** Hand-written source. */
  readonly wgsl?: string;
  readonly grid: readonly [number, number, number];
  readonly buffers: readonly DeviceBuffer[];
}

const adapter = await openGpu(Number(flags.adapter));
const device = await createGpuDevice(adapter, {
  features: adapter.features.filter((name) => name === "subgroups"),
});

function upload(data: Float32Array | Uint32Array): DeviceBuffer {
  const buffer = device.createBuffer(data.byteLength, "data");
  device.write(buffer, 0, new Uint8Array(data.buffer));
  return buffer;
}

const x = upload(randomValues(SIZES.m * SIZES.k));
// All experts have the same matrix values, so every kernel has the same result.
const w = randomValues(SIZES.k * SIZES.n, 2);
const dense = upload(w);
const stacked = device.createBuffer(8 * w.byteLength, "experts");
for (let e = 0; e < 8; e++) {
  device.copy(dense, 0, stacked, e * w.byteLength, w.byteLength);
}
const y = device.createBuffer(SIZES.m * SIZES.n * 4, "y");

function ours(tile: MatmulTile, rows: readonly number[]): Candidate {
  const { k, n } = SIZES;
  const shape = { k, columns: n, tile, grouped: { tiles: "tiles" } };
  const tree = matmul({
    ...shape,
    name: "grouped_matmul",
    bindings: Object.values(BINDINGS),
    weights: [{ binding: "w", stored: "f32", rowStride: n }],
    rows: u32(0),
    leftRow: (row) => mul(row, u32(k)),
    left: (base, at) => load("x", add(base, at)),
    epilogue: ({ row, column }, [sum]) => [
      store("y", add(mul(row, u32(n)), column), sum!),
    ],
  });
  const height = tileHeight(tile);
  const list: number[] = [];
  let first = 0;
  for (const [expert, count] of rows.entries()) {
    for (let row = 0; row < count; row += height) {
      list.push(expert, first + row, Math.min(height, count - row));
    }
    first += count;
  }
  const tiles = upload(Uint32Array.of(list.length / 3, ...list));
  const grid = matmulGrid(shape, list.length / 3).map((size) =>
    evaluateSize(size, () => NaN)
  ) as [number, number, number];
  return { tree, grid, buffers: [x, stacked, tiles, y] };
}

function theirs(variant: HandWritten): Candidate {
  const { x: left, w: right, y: result } = BINDINGS;
  return {
    tree: {
      name: "by_hand",
      workgroupSize: variant.lanes,
      bindings: [left!, right!, result!],
      shared: [],
      body: [],
    },
    wgsl: handWrittenMatmul(variant, SIZES),
    grid: handWrittenGrid(variant, SIZES),
    buffers: [x, dense, y],
  };
}

const given = flags.tiles?.split(",").map((text): MatmulTile => {
  const [rows, columns, lanes] = text.split(/[x_]/).map(Number);
  return {
    rows: rows!,
    columns: columns!,
    lanes: lanes!,
    right: text.includes("vector") ? "vector" : "scalar",
    code: text.includes("small") ? "small" : "large",
  };
});
const kind = adapter.type === "software" ? "software" : "gpu";

/** Prepares a candidate and runs it once. */
async function ready(
  side: string,
  { tree, wgsl, grid, buffers }: Candidate,
): Promise<() => Promise<void>> {
  await device.prepare({ [side]: { tree, ...wgsl ? { wgsl } : {} } });
  const once = async () => {
    device.launch(side, buffers, grid);
    await device.idle();
  };
  await once();
  return once;
}

/** Runs the tuner's search on both loads, without the constraint of a common height. */
async function searched(): Promise<MatmulTile> {
  let best = tileOf(kind);
  for (const variants of variantsOf({ grouped: false }, kind)) {
    const tiles = new Map(
      [best, ...variants(best)].map((tile) => [tileName(tile), tile]),
    );
    const sides: { [name: string]: () => Promise<void> } = {};
    for (const [name, tile] of tiles) {
      const both = await Promise.all(
        Object.entries(LOADS).map(([load, rows]) =>
          ready(`${name}, ${load}`, ours(tile, rows))
        ),
      );
      sides[name] = async () => {
        for (const once of both) await once();
      };
    }
    const times = await interleaved(sides, { repetitions: 5, warmUp: 1 });
    const fastest = Object.keys(times).reduce((a, b) =>
      median(times[a]!) <= median(times[b]!) ? a : b
    );
    best = tiles.get(fastest)!;
    console.error(`best so far: ${fastest}`);
  }
  return best;
}

const tried = flags.search ? [await searched()] : given;
const candidates: { [side: string]: Candidate } = {};
for (const tile of tried ?? [tileOf(kind)]) {
  for (const [name, rows] of Object.entries(LOADS)) {
    const side = tried ? `${name}, ${tileName(tile)}` : name;
    candidates[side] = ours(tile, rows);
  }
}
const generated = Object.keys(candidates);
for (const variant of HAND_WRITTEN) {
  if (
    variant.loads === "broadcast" && !adapter.features.includes("subgroups")
  ) {
    continue;
  }
  candidates[variantName(variant)] = theirs(variant);
}

const once: { [side: string]: () => Promise<void> } = {};
let expected: Float32Array | undefined;
const difference: { [side: string]: number } = {};
for (const [side, candidate] of Object.entries(candidates)) {
  once[side] = await ready(side, candidate);
  const bytes = await device.read(y, 0, y.bytes);
  const values = new Float32Array(bytes.buffer);
  expected ??= values;
  difference[side] = checkClose(values, expected, {
    what: side,
    tolerance: 1e-5,
  });
}
const times = await interleaved(once, {
  repetitions: Number(flags.runs),
  warmUp: 2,
});
const byHand = Object.keys(times).filter((side) => !generated.includes(side));
const best = byHand.reduce((a, b) =>
  median(times[a]!) <= median(times[b]!) ? a : b
);
report({
  program: "grouped_matmul",
  adapter: adapter.name,
  works: [{
    work:
      `${SIZES.m} rows of 8 experts times ${SIZES.k}x${SIZES.n}; by hand: one matrix`,
    amount: FLOPS,
    unit: "GFLOP/s",
    sides: Object.fromEntries(
      Object.entries(times).map(([side, ms]) => [side, timingOf(ms)]),
    ),
    difference,
  }],
  ratios: Object.fromEntries(generated.map((side) => [
    `grouped matmul, ${side}, of the best by hand`,
    Number((median(times[best]!) / median(times[side]!)).toFixed(3)),
  ])),
}, flags.out);
device.destroy();
