/** Contractions of packed weights over a sharded axis: the bits of one rank, also if ranks divide blocks. */
// needs: cpu
// rotates with: compiler/passes/lower/params/, spec/weights/

import t from "tap";
import { compileGraph, dot, model, upTo } from "../compiler/mod.ts";
import { trace } from "../compiler/graph/trace.ts";
import { selectDevices } from "../engine/devices.ts";
import {
  type Part,
  type StoredMatrix,
  viewsOf,
} from "../engine/encodings/matrix.ts";
import { tuningOf } from "../engine/tune/tuning.ts";
import { openCpuPool } from "../runtime/cpu/mod.ts";
import { HostDevice, type HostPool } from "../runtime/host/device.ts";
import { NativePool, whyNotNative } from "../runtime/native/mod.ts";
import type { TensorDirectory } from "../runtime/mod.ts";
import { ACTIVATIONS } from "../spec/weights/activations.ts";
import {
  PACKED_DTYPES,
  PACKED_ELEMENTS,
  type PackedDType,
  type PackedElement,
  type Packing,
  PACKINGS,
} from "../spec/weights/packed.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  type BlocksDType,
  fileOf,
  randomBlocks,
  randomsFrom,
  wordsOfBlocks,
} from "./helpers/random_blocks.ts";
import { INNER_SEED, isInTurn, repeatWith } from "./helpers/seed.ts";
import { bytesOf, f32, openSession } from "./helpers/sessions.ts";
import { entryInMemory } from "./helpers/tensor_entry.ts";

const [TOKENS, INNER, COLUMNS] = [3, 16, 24];
/** Ranks of `tp=2` have half a block of 256 elements, or a whole one. */
const WIDTHS = [256, 512] as const;

const next = randomsFrom(INNER_SEED);

/** Random numbers whose bits 16-bit scales keep: multiples of 1/16 below 16. */
function randomScales(count: number): Float32Array {
  return Float32Array.from({ length: count }, () => next() % 256 / 16);
}

/** Random bytes. `most`: the largest. */
function randomBytes(count: number, most: number): Uint8Array {
  return Uint8Array.from({ length: count }, () => next() % (most + 1));
}

/** A matrix [COLUMNS, width]. `parts`: its values by row. */
function matrixOf(
  stored: PackedDType,
  width: number,
  parts: { readonly [P in Part]?: Uint8Array | Float32Array },
): StoredMatrix {
  const { element, perScale = width, scale, block }: Packing = PACKINGS[stored];
  const kind = block?.scales.factor === "e8m0" ? "e8m0" : scale;
  const read = (part: Part, begin: number, end: number) => {
    const all = parts[part] ?? new Float32Array(0);
    const each = all.length / COLUMNS;
    return all.subarray(begin * each, end * each);
  };
  return {
    param: "w",
    of: ["w"],
    rows: COLUMNS,
    columns: width,
    element,
    group: perScale,
    ...kind === "f32" || kind === "e4m3" ? {} : { scale: kind },
    read: (...of) => Promise.resolve(read(...of)),
    // Offsets of blocks are no multiples of their scales.
    ...block
      ? {
        readAll: (...rows: [number, number]) =>
          Promise.resolve({
            codes: read("codes", ...rows) as Uint8Array,
            scales: read("scales", ...rows) as Float32Array,
            offsets: read("offsets", ...rows) as Float32Array,
          }),
      }
      : {},
  };
}

/** Random blocks of a file. */
function blockMatrix(stored: BlocksDType, width: number): StoredMatrix {
  const name = fileOf(stored);
  const { blocks, ...parts } = randomBlocks(name, {
    columns: COLUMNS,
    k: width,
    next,
  });
  const each = blocks.length / COLUMNS;
  const { source } = entryInMemory("w", {
    dtype: "U8",
    shape: [],
    data: blocks,
  });
  return {
    ...matrixOf(name, width, parts),
    blocks: {
      name,
      source,
      offset: 0,
      words: (begin, end) => {
        const rows = blocks.slice(begin * each, end * each);
        const words = wordsOfBlocks(`${name}_words` as "q4_k_words", rows);
        return Promise.resolve(new Uint8Array(words.buffer));
      },
    },
  };
}

/** Random values of an element kind with a scale per group. */
function groupedMatrix(stored: PackedDType, width: number): StoredMatrix {
  const { element, perScale = width, scale }: Packing = PACKINGS[stored];
  const { bits, offset }: PackedElement = PACKED_ELEMENTS[element];
  const groups = COLUMNS * width / perScale;
  // The last codes of E4M3 are NaN.
  const codes = randomBytes(COLUMNS * width, bits === 4 ? 15 : 254)
    .map((code) => code === 127 ? 0 : code);
  return matrixOf(stored, width, {
    codes,
    scales: scale === "e4m3"
      ? randomBytes(groups, 126)
      : scale === "e8m0"
      ? randomScales(groups).map((x) => 2 ** Math.floor(x - 8))
      : randomScales(groups),
    ...scale === "e4m3" ? { factors: randomScales(COLUMNS) } : {},
    ...offset ? { offsets: randomBytes(groups, 15) } : {},
  });
}

/** The tensors of a file with a matrix in an encoding. */
function tensorsOf(stored: PackedDType, width: number): TensorDirectory {
  const views = PACKINGS[stored].block
    ? viewsOf(blockMatrix(stored as BlocksDType, width))
    : PACKINGS[stored].perScale !== undefined
    ? viewsOf(groupedMatrix(stored, width))
    // The layout of files with a scale per row.
    : [
      entryInMemory("w", {
        dtype: "I8",
        shape: [COLUMNS, width],
        data: randomBytes(COLUMNS * width, 255),
      }),
      entryInMemory("w_scale", {
        dtype: "F32",
        shape: [COLUMNS, 1],
        data: randomScales(COLUMNS),
      }),
    ];
  const up = entryInMemory("up", {
    dtype: "F32",
    shape: [width, INNER],
    data: randomScales(width * INNER),
  });
  return new Map([...views, up].map((entry) => [entry.name, entry]));
}

/** Two contractions. `tp` shards the axis between them. */
function graphOf(width: number) {
  const axes = { token: upTo(4), inner: INNER, hidden: width, out: COLUMNS };
  return trace(model(axes, (m) => {
    const up = m.param("up", "hidden inner");
    const hidden = dot(m.input("x", "token inner"), up, "inner");
    return { y: dot(hidden, m.param("w", "out hidden"), "hidden") };
  }));
}

const skip = skipUnasked("cpu");
const noNative = await whyNotNative() ?? false;

for (const adapter of ["cpu", "native"] as const) {
  t.test(`shards of packed weights: ${adapter}`, {
    skip: skip || adapter === "native" && noNative,
  }, async (t) => {
    const selected = await selectDevices({ adapter });
    const tuning = tuningOf(selected, {});
    const pool: HostPool =
      await (adapter === "cpu" ? openCpuPool(1) : NativePool.open(1));
    const cases = PACKED_DTYPES.flatMap((stored) =>
      WIDTHS.flatMap((width) =>
        ACTIVATIONS.map((activations) => ({ stored, width, activations }))
      )
    );
    /** Compiled C takes longest: only of the blocks that ranks divide. */
    const runs = ({ stored, width }: typeof cases[number]) =>
      adapter === "cpu" || PACKINGS[stored].block?.elements === width;
    const every = adapter === "cpu" ? 4 : 8;
    const x = f32([TOKENS, INNER], randomScales(TOKENS * INNER));
    for (const [i, one] of cases.entries()) {
      const { stored, width, activations } = one;
      const tensors = tensorsOf(stored, width);
      const outputs: string[] = [];
      for (
        const sharding of [{}, { mesh: { tp: 2 }, place: { hidden: "tp" } }]
      ) {
        const plan = await compileGraph(graphOf(width), {
          weights: { w: stored },
          activations,
          tuning,
          limits: selected.limits,
          ...sharding,
        });
        if (!runs(one) || !isInTurn(i, every)) continue;
        const device = new HostDevice(pool);
        const devices = Array.from({ length: plan.ranks }, () => device);
        const session = await openSession(plan, { devices, tensors });
        outputs.push(bytesOf(await session.run("main", { x })));
        session.close();
      }
      if (outputs.length === 0) continue;
      const [whole, sharded] = outputs;
      t.equal(
        sharded,
        whole,
        `${stored}, ${width}, ${activations} (${repeatWith()})`,
      );
    }
    await pool.close();
  });
}
