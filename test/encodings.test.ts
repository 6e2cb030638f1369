/** Published layouts of quantized matrices: element values, and the codes, scales and offsets that kernels read. */

import t, { type Test } from "tap";
import fc from "fast-check";
import { withViews } from "../engine/encodings/mod.ts";
import { hasWeights, storedIn } from "../engine/train/stored.ts";
import { narrow, widen } from "../runtime/half.ts";
import type { TensorEntry } from "../runtime/mod.ts";
import {
  PACKED_ELEMENTS,
  packedDTypesOf,
  type PackedElement,
  type PackedElementName,
  type Packing,
  PACKINGS,
  type ScaleKind,
  SCALES,
} from "../spec/weights/packed.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { repeatWith } from "./helpers/seed.ts";
import { entryInMemory } from "./helpers/tensor_entry.ts";

type Data =
  | Uint8Array
  | Int32Array
  | Uint16Array
  | Float32Array
  | BigInt64Array;

function entry(
  name: string,
  dtype: string,
  shape: readonly number[],
  data: Data,
): [string, TensorEntry] {
  return [name, entryInMemory(name, { dtype, shape, data })];
}

async function floats({ source, offset, bytes }: TensorEntry) {
  const read = (await source.read(offset, bytes)).slice();
  return new Float32Array(read.buffer, 0, bytes / 4);
}

/** Decodes the packed views of a matrix as kernels do. */
async function byKernels(
  tensors: ReadonlyMap<string, TensorEntry>,
  param: string,
  columns: number,
): Promise<Float32Array> {
  const { element, names, perWord, perScale = columns, scale }: Packing =
    PACKINGS[tensors.get(param)!.packed!];
  const { bits, value, offset }: PackedElement = PACKED_ELEMENTS[element];
  const codes = tensors.get(param + names.elements)!;
  const read = (await codes.source.read(codes.offset, codes.bytes)).slice();
  const words = new Uint32Array(read.buffer, 0, read.length / 4);
  const kind: ScaleKind = SCALES[scale];
  const filed = tensors.get(param + names.scales)!;
  t.equal(filed.dtype, kind.stored.toUpperCase());
  const stored = (await filed.source.read(filed.offset, filed.bytes)).slice();
  const halves = new Uint16Array(stored.buffer, 0, stored.length >> 1);
  const scales = {
    f32: () => new Float32Array(stored.buffer),
    f16: () => widen("f16", halves),
    bf16: () => widen("bf16", halves),
    u32: () => widen(kind.beforeZero!, halves.filter((_, i) => i % 2 === 0)),
    u8: () => Float32Array.from(stored, kind.value),
  }[kind.stored]();
  if (names.factors !== undefined) {
    const factors = await floats(tensors.get(param + names.factors)!);
    const groups = columns / perScale;
    scales.forEach((scale, i) =>
      scales[i] = scale * factors[Math.floor(i / groups)]!
    );
  }
  const offsets = offset &&
    (kind.beforeZero
      ? scales.map((scale, i) => -scale * halves[2 * i + 1]!)
      : await floats(tensors.get(param + names.offsets!)!));
  return Float32Array.from({ length: words.length * perWord }, (_, i) => {
    const code = words[Math.floor(i / perWord)]! >>> (bits * (i % perWord)) &
      (2 ** bits - 1);
    const group = Math.floor(i / perScale);
    const scaled = Math.fround(value(code) * scales[group]!);
    return offsets ? scaled + offsets[group]! : scaled;
  });
}

/** Checks both views of a matrix against its values. */
async function holds(
  t: Test,
  entries: readonly [string, TensorEntry][],
  { columns, values }: { readonly columns: number; readonly values: number[] },
): Promise<void> {
  const tensors = withViews(new Map(entries));
  const wanted = Float32Array.from(values);
  t.strictSame(await floats(tensors.get("w.weight")!), wanted, "as f32");
  t.strictSame(await byKernels(tensors, "w.weight", columns), wanted, "packed");
  const used = new Set(tensors.get("w.weight")!.of);
  for (const [name] of entries) t.ok(used.has(name), `${name} is used`);
}

const nibble = fc.integer({ min: 0, max: 15 });
/** Scales whose products with small integers are exact in f32. They are exact in 16 bits. */
const scale = fc.integer({ min: 1, max: 127 }).map((n) => n / 1024);

function matrixOf(rows: number, columns: number, group: number) {
  const groups = rows * columns / group;
  return fc.record({
    codes: fc.array(nibble, {
      minLength: rows * columns,
      maxLength: rows * columns,
    }),
    scales: fc.array(scale, { minLength: groups, maxLength: groups }),
    zeros: fc.array(nibble, { minLength: groups, maxLength: groups }),
  });
}

const [ROWS, COLUMNS, GROUP] = [16, 64, 32];
const GROUPS = COLUMNS / GROUP;

/** Packs eight 4-bit codes into each word; `order` lists the element in each nibble. */
function words(codes: readonly number[], order = [0, 1, 2, 3, 4, 5, 6, 7]) {
  return Int32Array.from(
    { length: codes.length / 8 },
    (_, word) =>
      order.reduce((n, of, i) => n | codes[8 * word + of]! << (4 * i), 0),
  );
}

function transposed<T>(values: readonly T[], columns: number): T[] {
  const rows = values.length / columns;
  return values.map((_, i) =>
    values[(i % rows) * columns + Math.floor(i / rows)]!
  );
}

/** A tensor of scales in F32, F16 or BF16. */
function scaleEntry(
  name: string,
  dtype: "F32" | "F16" | "BF16",
  shape: readonly number[],
  scales: readonly number[],
): [string, TensorEntry] {
  const values = Float32Array.from(scales);
  const data = dtype === "F32"
    ? values
    : narrow(dtype === "F16" ? "f16" : "bf16", values);
  return entry(name, dtype, shape, data);
}

async function holdsForRandom(
  t: Test,
  matrix: (drawn: {
    readonly codes: number[];
    readonly scales: number[];
    readonly zeros: number[];
  }) => {
    readonly entries: [string, TensorEntry][];
    readonly value: (code: number, group: number) => number;
  },
): Promise<void> {
  await fc.assert(
    fc.asyncProperty(matrixOf(ROWS, COLUMNS, GROUP), async (drawn) => {
      const { entries, value } = matrix(drawn);
      const values = drawn.codes.map((code, i) =>
        value(code, Math.floor(i / GROUP))
      );
      await holds(t, entries, { columns: COLUMNS, values });
    }),
    { numRuns: 5 },
  ).catch((error: unknown) => t.fail(repeatWith(), { error }));
}

for (const dtype of ["F16", "BF16", "F32"] as const) {
  t.test(`compressed-tensors, INT4 in groups with scales in ${dtype}`, async (t) => {
    await holdsForRandom(t, ({ codes, scales }) => {
      const entries = [
        entry("w.weight_packed", "I32", [ROWS, COLUMNS / 8], words(codes)),
        scaleEntry("w.weight_scale", dtype, [ROWS, GROUPS], scales),
        entry("w.weight_shape", "I64", [2], BigInt64Array.of(16n, 64n)),
      ];
      const views = withViews(new Map(entries));
      const suffix = dtype === "F32" ? "" : `_${dtype.toLowerCase()}`;
      t.ok(views.has(`w.weight:int4x32${suffix}_scales`));
      return { entries, value: (code, group) => (code - 8) * scales[group]! };
    });
  });

  t.test(`compressed-tensors, INT4 with zero points and scales in ${dtype}`, async (t) => {
    await holdsForRandom(t, ({ codes, scales, zeros }) => ({
      entries: [
        entry("w.weight_packed", "I32", [ROWS, COLUMNS / 8], words(codes)),
        scaleEntry("w.weight_scale", dtype, [ROWS, GROUPS], scales),
        // Eight rows per word.
        entry(
          "w.weight_zero_point",
          "I32",
          [ROWS / 8, GROUPS],
          Int32Array.from(
            transposed([...words(transposed(zeros, GROUPS))], ROWS / 8),
          ),
        ),
        entry("w.weight_shape", "I64", [2], BigInt64Array.of(16n, 64n)),
      ],
      value: (code, group) => (code - zeros[group]!) * scales[group]!,
    }));
  });

  t.test(`GPTQ with scales in ${dtype}`, async (t) => {
    await holdsForRandom(t, ({ codes, scales, zeros }) => ({
      entries: [
        // Eight columns per word, transposed.
        entry(
          "w.qweight",
          "I32",
          [COLUMNS / 8, ROWS],
          Int32Array.from(transposed([...words(codes)], COLUMNS / 8)),
        ),
        entry(
          "w.qzeros",
          "I32",
          [GROUPS, ROWS / 8],
          words(transposed(zeros.map((zero) => (zero + 15) % 16), GROUPS)),
        ),
        scaleEntry(
          "w.scales",
          dtype,
          [GROUPS, ROWS],
          transposed(scales, GROUPS),
        ),
        entry(
          "w.g_idx",
          "I32",
          [COLUMNS],
          Int32Array.from({ length: COLUMNS }, (_, i) => Math.floor(i / GROUP)),
        ),
      ],
      // Files store the zero point minus one; 16 is the largest.
      value: (code, group) => (code - (zeros[group]! || 16)) * scales[group]!,
    }));
  });

  t.test(`AWQ with scales in ${dtype}`, async (t) => {
    const order = [0, 2, 4, 6, 1, 3, 5, 7];
    await holdsForRandom(t, ({ codes, scales, zeros }) => ({
      entries: [
        entry(
          "w.qweight",
          "I32",
          [COLUMNS, ROWS / 8],
          words(transposed(codes, COLUMNS), order),
        ),
        entry(
          "w.qzeros",
          "I32",
          [GROUPS, ROWS / 8],
          words(transposed(zeros, GROUPS), order),
        ),
        scaleEntry(
          "w.scales",
          dtype,
          [GROUPS, ROWS],
          transposed(scales, GROUPS),
        ),
      ],
      value: (code, group) => (code - zeros[group]!) * scales[group]!,
    }));
  });
}

t.test("NVFP4 with a dividing or multiplying global scale", async (t) => {
  const [rows, columns] = [4, 32];
  const codes = Array.from({ length: rows * columns }, (_, i) => (i * 7) % 16);
  const bytes = Uint8Array.from(
    { length: codes.length / 2 },
    (_, i) => codes[2 * i]! | codes[2 * i + 1]! << 4,
  );
  // 0, and other exponents and fractions; none is NaN.
  const stored = Uint8Array.from({ length: 8 }, (_, i) => 17 * i);
  const e4m3 = [...stored].map((code) => PACKED_ELEMENTS.fp8.value(code));
  const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  const values = (factor: number) =>
    codes.map((code, i) =>
      (code & 8 ? -1 : 1) * magnitudes[code & 7]! *
      Math.fround(e4m3[Math.floor(i / 16)]! * factor)
    );
  const scales = (name: string) =>
    entry(name, "F8_E4M3", [rows, columns / 16], stored);
  await holds(t, [
    entry("w.weight_packed", "U8", [rows, columns / 2], bytes),
    scales("w.weight_scale"),
    entry("w.weight_global_scale", "F32", [1], Float32Array.of(1347)),
  ], { columns, values: values(Math.fround(1 / 1347)) });
  await holds(t, [
    entry("w.weight", "U8", [rows, columns / 2], bytes),
    scales("w.weight_scale"),
    entry("w.weight_scale_2", "F32", [], Float32Array.of(0.3)),
  ], { columns, values: values(Math.fround(0.3)) });
});

t.test("compressed-tensors, MXFP4", async (t) => {
  const [rows, columns] = [4, 64];
  const bytes = Uint8Array.from(
    { length: rows * columns / 2 },
    (_, i) => i * 37 % 256,
  );
  const powers = Uint8Array.from({ length: 8 }, (_, i) => 120 + i);
  const { value } = PACKED_ELEMENTS.fp4;
  const codes = entry("w.weight_packed", "U8", [rows, columns / 2], bytes);
  const tensors = [
    codes,
    entry("w.weight_scale", "U8", [rows, columns / 32], powers),
  ];
  t.equal(withViews(new Map(tensors)).get("w.weight")?.packed, "mxfp4");
  const narrow = new Uint8Array(16);
  const others = [codes, entry("w.weight_scale", "U8", [rows, 4], narrow)];
  t.notOk(withViews(new Map(others)).has("w.weight"), "groups of 16");
  await holds(t, tensors, {
    columns,
    values: Array.from(
      { length: rows * columns },
      (_, i) =>
        value(bytes[i >> 1]! >> (4 * (i & 1)) & 15) *
        2 ** (powers[i >> 5]! - 127),
    ),
  });
});

t.test("factors of NVFP4 that make scales tiny are rejected", async (t) => {
  const tensors = withViews(
    new Map([
      entry("w.weight_packed", "U8", [1, 8], new Uint8Array(8)),
      entry("w.weight_scale", "F8_E4M3", [1, 1], Uint8Array.of(1)),
      entry("w.weight_global_scale", "F32", [1], Float32Array.of(2 ** -120)),
    ]),
  );
  await t.rejects(floats(tensors.get("w.weight:fp4x8_factors")!), {
    message:
      /^Cannot read tensor 'w\.weight_global_scale' of 'file': it is 7\.52.*e-37, and the factor of scales must be 0 or from 2\^-100 to 2\^40\. Use another quantization of the model$/,
  });
});

t.test("FP8 with blocks that do not divide the matrix, row scales, and one scale", async (t) => {
  const [rows, columns] = [40, 48];
  const codes = Uint8Array.from(
    { length: rows * columns },
    (_, i) => i * 37 % 256,
  ).map((code) => (code & 127) === 127 ? 1 : code);
  const forms = [
    { shape: [2, 2], at: (r: number, c: number) => 2 * (r >> 5) + (c >> 5) },
    { shape: [rows, 1], at: (r: number) => r },
    { shape: [1], at: () => 0 },
  ];
  for (const { shape, at } of forms) {
    const count = shape.reduce((n, size) => n * size, 1);
    const scales = Float32Array.from({ length: count }, (_, i) => (i + 1) / 64);
    await holds(t, [
      entry("w.weight", "F8_E4M3", [rows, columns], codes),
      entry("w.weight_scale_inv", "F32", shape, scales),
    ], {
      columns,
      values: [...codes].map((code, i) =>
        Math.fround(
          PACKED_ELEMENTS.fp8.value(code) *
            scales[at(Math.floor(i / columns), i % columns)]!,
        )
      ),
    });
  }
});

t.test("matrices of all experts are one tensor too, if none is missing", (t) => {
  const matrix = (expert: number, name: string, rows = 4) => {
    const weight = `mlp.experts.${expert}.${name}.weight`;
    const [codes, one] = [new Uint8Array(rows * 16), Float32Array.of(1)];
    return [
      entry(weight, "F8_E4M3", [rows, 16], codes),
      entry(`${weight}_scale`, "F32", [], one),
    ];
  };
  const stacks = (...entries: [string, TensorEntry][][]) =>
    Object.fromEntries(
      [...withViews(new Map(entries.flat())).values()]
        .filter(({ name }) => /experts\.[a-z_]+$/.test(name))
        .map(({ name, shape }) => [name, shape]),
    );
  const all = [0, 1].flatMap((expert) =>
    ["gate_proj", "up_proj", "down_proj"].map((name) => matrix(expert, name))
  );
  const down = { "mlp.experts.down_proj": [2, 4, 16] };
  t.strictSame(stacks(...all), {
    "mlp.experts.gate_up_proj": [2, 8, 16],
    ...down,
  });
  t.strictSame(stacks(...all.slice(1)), down, "without a gate");
  t.strictSame(stacks(...all.slice(1), matrix(0, "gate_proj", 2)), down);
  t.strictSame(stacks(all[0]!), {}, "a gate alone");
  t.strictSame(stacks(all[5]!), {}, "the last expert alone");
  t.end();
});

t.test("groups are as large as rows and ranks allow", (t) => {
  const dtypes = (
    element: PackedElementName,
    columns: number,
    group: number,
  ) => packedDTypesOf(element, { columns, group });
  t.strictSame(dtypes("fp8", 2048, 128), ["fp8x128"]);
  t.strictSame(dtypes("fp8", 768, 128), ["fp8x128", "fp8x64", "fp8x32"]);
  // Integer sums of 32 and of 16 elements are not split.
  t.strictSame(dtypes("int4", 1440, 64), ["int4x32"]);
  t.strictSame(dtypes("int4", 1008, 16), ["int4x16"]);
  t.strictSame(dtypes("int4", 12, 4), []);
  t.end();
});

t.test("NaN elements are rejected", async (t) => {
  const nan = Uint8Array.from({ length: 64 }, (_, i) => i === 9 ? 0x7f : 1);
  const tensors = withViews(
    new Map([
      entry("w.weight", "F8_E4M3", [4, 16], nan),
      entry("w.weight_scale_inv", "F32", [1, 1], Float32Array.of(1)),
    ]),
  );
  await t.rejects(floats(tensors.get("w.weight")!), {
    message:
      "Cannot read tensor 'w.weight' of 'file': element 9 is not a finite number. Get the file again",
  });
});

t.test("quantized weights are not trained", async (t) => {
  for (const name of ["kimik2-16e-int4", "gptoss-8e-mxfp4"]) {
    await t.rejects(storedIn(checkpointFolder(name), files), {
      message:
        /^Cannot train '.*': tensor '.*' is quantized \((int4 in groups of 32|MXFP4)\)\. Give a checkpoint folder in f32, bf16 or f16, or train adapters \(--lora\)$/,
    });
  }
  // Adapters are refused with the same sentence as all weights.
  const message =
    "Cannot train 'model.gguf': it is a GGUF file. Give a checkpoint folder in f32, bf16 or f16";
  await t.rejects(storedIn("model.gguf", files), { message });
  await t.rejects(hasWeights("model.gguf", files), { message });
});

t.test("64-bit integers are read as 32 bits, row by row", async (t) => {
  const ids = [1n, -2n, 3n, 4n, 5n, 2147483647n];
  const view = (values: bigint[]) =>
    withViews(
      new Map([entry("ids", "I64", [3, 2], BigInt64Array.from(values))]),
    ).get("ids")!;
  const { dtype, shape, bytes, source } = view(ids);
  t.strictSame([dtype, shape, bytes], ["I32", [3, 2], 24]);
  const read = (await source.read(8, 16)).slice();
  t.strictSame([...new Int32Array(read.buffer)], [3, 4, 5, 2147483647]);
  await t.rejects(view([1n, 2n, 3n, 4n, 5n, 2n ** 40n]).source.read(0, 24), {
    name: "DataError",
    message: /element 5 is 1099511627776, which does not fit in 32 bits/,
  });
});
