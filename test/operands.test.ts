/**
 * 16-bit operands of matmuls: their bits on every device, their WGSL with subgroup matrices, and the error of models.
 */
// needs: cpu, gpu
// rotates with: compiler/kernels/matmul/matrices.ts, compiler/kernels/attention/matrices.ts, compiler/kernels/matmul/contractions.ts, compiler/kernels/matrix_tile.ts, spec/kernel/matrices.ts

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { create } from "webgpu";
import {
  attention,
  attentionMatrices,
  lengthAt,
  matmulMatrices,
  type MatmulOptions,
} from "../compiler/kernels/mod.ts";
import {
  attentionGrid,
  DEFAULT_TILE,
  matrixGrid,
  type MatrixQueries,
  matrixQueries,
  matrixQueriesGrid,
} from "../compiler/tuning/mod.ts";
import { narrow } from "../runtime/half.ts";
import { describeAdapter, requestAdapter } from "../runtime/gpu/gpu.ts";
import { createGpuDevice } from "../runtime/mod.ts";
import { politely } from "../runtime/gpu/politely.ts";
import { runOpened, type Tensors } from "../engine/mod.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import { range } from "../spec/range.ts";
import { sum } from "../spec/sum.ts";
import { roundF16 } from "../spec/half.ts";
import { PACKED_ELEMENTS, packingOf } from "../spec/weights/packed.ts";
import { shared, u32 } from "../spec/kernel/build.ts";
import {
  expandMatrices,
  matrixFaults,
  matrixStatements,
  MAX_F16,
} from "../spec/kernel/matrices.ts";
import type { Grid } from "../spec/kernel/make.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import { readTree } from "../spec/kernel/verify/tree.ts";
import { printWgsl } from "../spec/kernel/wgsl/wgsl.ts";
import {
  checkpointFolder,
  loadCheckpoint,
  padBatch,
  readReference,
} from "./helpers/checkpoints.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  expected,
  optionsOf,
  type Product,
  resultOfMatrices,
  STORED,
} from "./helpers/products.ts";
import { contracted } from "./helpers/contracted.ts";
import { SEED } from "./helpers/seed.ts";
import { closeDevices, runCase } from "./helpers/run_model.ts";
import { stepCase } from "./helpers/training_layer.ts";
import {
  bits,
  close,
  type KernelTarget,
  testKernels,
  type Words,
  workgroups,
} from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";

t.teardown(closeDevices);

/** More than 64 tokens when repeated. */
const TEXT =
  "Once upon a time there was a king who had a daughter, and she was fair. ";

/** A product that does not fill a tile. */
function productOf(some: Partial<Product>): Product {
  return {
    stored: "bf16",
    k: 64,
    segments: 1,
    columns: 72,
    counts: [37],
    grouped: false,
    pair: false,
    late: false,
    seed: 3,
    ...some,
  };
}

function operand(x: number): number {
  return roundF16(Math.max(-MAX_F16, Math.min(MAX_F16, x)));
}

/** Sums exact products of f16 in sequence in f32. */
function rowInOrder(
  row: Float32Array,
  matrix: Float32Array,
  columns: number,
): Float32Array {
  return Float32Array.from({ length: columns }, (_, c) => {
    let sum = 0;
    for (const [k, x] of row.entries()) {
      sum = Math.fround(sum + x * matrix[k * columns + c]!);
    }
    return sum;
  });
}

testKernels(
  "matmulMatrices() rounds operands and adds in order",
  async (t, target) => {
    for (const [i, stored] of STORED.entries()) {
      const grouped = i % 2 === 0;
      const product = productOf({
        stored,
        grouped,
        counts: grouped ? [37, 0, 3] : [37],
        pair: i > 2,
      });
      const wanted = expected(product, operand, rowInOrder);
      // Each lane loads one element of the left operand at a time, or vectors.
      for (const height of [16, 64]) {
        const found = await resultOfMatrices(target, product, height);
        const name = `${stored}, ${height} rows`;
        t.strictSame(bits(found), bits(Float32Array.from(wanted)), name);
      }
    }
  },
);

/** Multiplies the identity by the weight `w`, f32 [k, columns]: returns it as rounded to 16 bits. */
async function roundedWeight(
  target: KernelTarget,
  options: MatmulOptions,
  operands: { readonly w: Words; readonly scales_w?: Words },
): Promise<number[]> {
  const [k, columns] = [Number(options.k), options.columns];
  const shape = { rows: 32, columns: 128, depth: 16 };
  const { y } = await target.run(
    matmulMatrices(options, shape),
    {
      x: Float32Array.from(
        { length: k * k },
        (_, at) => at % (k + 1) === 0 ? 1 : 0,
      ),
      rowOf: Uint32Array.from(range(k)),
      scales_w: new Uint32Array(1),
      ...operands,
      factors_w: new Float32Array(1),
      tiles: Uint32Array.of(0),
      lengths: Uint32Array.of(k, k),
      y: new Float32Array(k * columns),
    },
    workgroups(
      matrixGrid(shape, { grouped: false, width: columns, size: k }),
    ),
  );
  return [...y!];
}

testKernels(
  "matmulMatrices() limits the scales of packed weights",
  async (t, target) => {
    const [k, columns] = [32, 32];
    const product = productOf({ stored: "mxfp4", k, columns, counts: [k] });
    const options = optionsOf(product, DEFAULT_TILE);
    const rounded = await roundedWeight(target, options, {
      // Code `column % 16` in every row.
      w: Uint32Array.from(
        { length: k / 8 * columns },
        (_, at) => at % 16 * 0x11111111,
      ),
      // 2^33 in the first 16 columns, 2^13 in the others.
      scales_w: Uint32Array.from(
        { length: columns / 4 },
        (_, at) => at < 4 ? 0xa0a0a0a0 : 0x8c8c8c8c,
      ),
    });
    const largest = Math.fround(MAX_F16 / 6);
    const row = range(columns).map((column) => {
      const scale = column < 16 ? largest : 2 ** 13;
      const value = PACKED_ELEMENTS.fp4.value(column % 16);
      return roundF16(Math.fround(value * scale)) + 0;
    });
    t.same(rounded, range(k).flatMap(() => row));
    t.equal(Math.max(...row), MAX_F16);
  },
);

testKernels(
  "matmulMatrices() limits the elements of blocks",
  async (t, target) => {
    const [k, columns] = [32, 32];
    const product = productOf({ stored: "mxfp4", k, columns, counts: [k] });
    const options = optionsOf(product, DEFAULT_TILE);
    const [weight] = options.weights;
    const { bytes, codes, scales, offsets } = packingOf("q4_1_words")!.block!;
    const blocks = new Uint8Array(bytes * columns);
    const [one, most] = [0x3c00, 0x7bff];
    // Of each column: all codes, the scale and the offset, in f16.
    const parts = [
      [15, most, 0],
      [1, most, most],
      [0, one, most | 0x8000],
      [15, one, one],
    ] as const;
    const put = (column: number, at: number, byte: number) => {
      blocks[(at >> 2) * 4 * columns + column * 4 + at % 4] = byte;
    };
    for (const column of range(columns)) {
      const [code, scale, offset] = parts[column % parts.length]!;
      for (const at of range(k / 2)) {
        put(column, codes[0]!.at + at, code * 0x11);
      }
      for (const [at, value] of [[scales.at, scale], [offsets!.at, offset]]) {
        put(column, at!, value! & 255);
        put(column, at! + 1, value! >> 8);
      }
    }
    const rounded = await roundedWeight(
      target,
      {
        ...options,
        weights: [{ ...weight!, stored: "q4_1_words", scales: "w" }],
      },
      { w: new Uint32Array(blocks.buffer) },
    );
    const row = range(columns).map((column) =>
      [MAX_F16, MAX_F16, -MAX_F16, 16][column % parts.length]!
    );
    t.same(rounded, range(k).flatMap(() => row));
  },
);

testKernels(
  "contractMatrices() rounds operands and adds in order",
  async (t, target) => {
    // Two tiles of rows, and two of columns per batch.
    const [rows, batches, k, columns] = [70, 2, 32, 70];
    const { kernel, grid } = contracted({ rows, batches, k, columns });
    const x = randoms(rows * batches * k, 1);
    const w = randoms(batches * k * columns, 2);
    const { y } = await target.run(
      kernel,
      {
        x,
        w,
        lengths: Uint32Array.of(rows),
        y: new Float32Array(rows * batches * columns),
      },
      workgroups(grid),
    );
    const [left, right] = [x, w].map((of) => of.map(operand)) as [
      Float32Array,
      Float32Array,
    ];
    const wanted = range(rows * batches).flatMap((at) => [
      ...rowInOrder(
        left.subarray(at * k, (at + 1) * k),
        right.subarray(at % batches * k * columns),
        columns,
      ),
    ]);
    t.strictSame(bits(y!), bits(Float32Array.from(wanted)));
  },
);

/** Bytes of workgroup memory: of most devices, and of those for whole latents. */
const MEMORY = 1 << 15, LATENT_MEMORY = 3 << 14;

/** Options of attention with 4 heads, and a cache in f32 or f16. */
function attentionOf(
  how: {
    readonly window?: number;
    readonly sinks?: boolean;
    readonly shared?: boolean;
  },
  half: boolean,
) {
  const dim = how.shared ? 80 : 48;
  const shape = { heads: 4, kvHeads: 2, dim, valueDim: 64, context: 160 };
  return {
    name: "attention",
    ...shape,
    ...how,
    scale: 0.25,
    tokens: lengthAt(0),
    ...half ? { stored: "f16" as const, pages: { size: 32 } } : {},
  };
}

/** Tokens of a step: many of one sequence, one of another, many of a third. */
const TOKENS = [
  ...range(40).map((n) => [0, 60 + n] as const),
  [2, 0] as const,
  ...range(30).map((n) => [1, 100 + n] as const),
];

testKernels(
  "attentionMatrices() agrees with attention() in f32",
  async (t, target) => {
    for (
      const [i, how] of [
        {},
        { window: 70 },
        { sinks: true },
        { shared: true },
        { shared: true, sinks: true },
      ].entries()
    ) {
      const options = attentionOf(how, i % 2 === 1);
      const { heads, kvHeads, dim, valueDim, context } = options;
      const [tile, large] = [MEMORY, LATENT_MEMORY].map((memory) =>
        matrixQueries(options, memory)!
      ) as [MatrixQueries, MatrixQueries];
      t.strictSame(tile, { heads: 2, tokens: 32, blocks: 1 });
      t.strictSame(large, { ...tile, blocks: 2 });
      const size = 3 * context * kvHeads;
      const [keys, values] = [dim, valueDim].map((width, n) => {
        const random = randoms(size * width, n + 1);
        return options.stored
          ? new Uint32Array(narrow("f16", random).buffer)
          : random;
      });
      const run = async (
        kernel: Kernel,
        { grid, tokens }: {
          readonly grid: (tokens: number) => Grid;
          readonly tokens: typeof TOKENS;
        },
      ) => {
        const first = TOKENS.indexOf(tokens[0]!) * heads * dim;
        const q = randoms(TOKENS.length * heads * dim, 5).map((x) => 4 * x);
        const { y } = await target.run(
          kernel,
          {
            q: q.slice(first, first + tokens.length * heads * dim),
            keys: keys!,
            ...options.shared ? {} : { values: values! },
            sinks: randoms(heads, 7),
            pages: Int32Array.from({ length: 15 }, (_, n) => 7 * n % 15),
            sequence: Int32Array.from(tokens, ([sequence]) => sequence),
            position: Int32Array.from(tokens, ([, position]) => position),
            y: new Float32Array(tokens.length * heads * valueDim),
            lengths: Uint32Array.of(tokens.length),
          },
          workgroups(grid(tokens.length)),
        );
        return y!;
      };
      const matrices = (tokens: typeof TOKENS, of = tile) =>
        run(attentionMatrices(options, of), {
          grid: (tokens) => matrixQueriesGrid(options, { tile, tokens }),
          tokens,
        });
      const y = await matrices(TOKENS);
      // A software GPU has too little memory for two blocks.
      if (!target.software) {
        t.same(bits(await matrices(TOKENS, large)), bits(y));
      }
      const exact = await run(attention(options), {
        grid: (tokens) => attentionGrid(options, tokens),
        tokens: TOKENS,
      });
      t.ok(y.some((x, n) => x !== exact[n]), "operands are rounded");
      close(t, y, [...exact], 2 ** -9);
      // Neighbours do not matter.
      const some = y.subarray(30 * heads * valueDim, 41 * heads * valueDim);
      t.same(bits(await matrices(TOKENS.slice(30, 41))), bits(some));
    }
  },
);

/** A kernel of 128 columns, or of 64 for each weight of a pair. */
function kernelOf(
  some: Partial<Product>,
  { rows = 16, depth = 16 }: {
    readonly rows?: number;
    readonly depth?: number;
  } = {},
): Kernel {
  const product = productOf({ grouped: true, ...some });
  const columns = product.pair ? 64 : 128;
  const shape = { rows, columns, depth };
  return matmulMatrices(optionsOf(product, DEFAULT_TILE), shape);
}

/** Attention with sinks over a window, and a cache in f32 or f16. `shared`: values are a part of the keys. */
function attentionKernel(half: boolean, shared: boolean): Kernel {
  const options = {
    ...attentionOf({ sinks: true, window: 70, shared }, half),
    ...shared ? { dim: 528, valueDim: 512 } : {},
  };
  return attentionMatrices(options, matrixQueries(options, LATENT_MEMORY)!);
}

t.test("printWgsl() uses subgroup matrices of devices that have them", (t) => {
  const kernel = kernelOf({});
  const file = new URL("fixtures/wgsl/matmul_matrices.wgsl", import.meta.url);
  t.equal(printWgsl(kernel, { matrices: 32 }), readFileSync(file, "utf8"));
  const plain = printWgsl(kernel);
  t.notMatch(plain, /subgroup|enable/);
  // Sixteen subgroups have no memory for their results.
  t.equal(printWgsl(kernel, { matrices: 16 }), plain);
  t.end();
});

/** The first results of subgroups of 64 lanes. */
const IN_TURNS = `
          var subgroup_value0_0 = 0.0f;
          var subgroup_value0_1 = 0.0f;
          var subgroup_value0_2 = 0.0f;
          var subgroup_value0_3 = 0.0f;
          workgroupBarrier();
          if (subgroup_number / 2u == 0u) {
            subgroupMatrixStore<row_major>(&subgroup_results, (subgroup_number % 2u) * 256u, subgroup_sum0_0_0_0, 16u);
          }
          workgroupBarrier();
          if (subgroup_number / 2u == 0u) {
            subgroup_value0_0 = subgroup_results[(subgroup_number % 2u) * 256u + 0u + subgroup_lane];
            subgroup_value0_1 = subgroup_results[(subgroup_number % 2u) * 256u + 64u + subgroup_lane];
            subgroup_value0_2 = subgroup_results[(subgroup_number % 2u) * 256u + 128u + subgroup_lane];
            subgroup_value0_3 = subgroup_results[(subgroup_number % 2u) * 256u + 192u + subgroup_lane];
          }
          workgroupBarrier();
          if (subgroup_number / 2u == 1u) {
            subgroupMatrixStore<row_major>(&subgroup_results, (subgroup_number % 2u) * 256u, subgroup_sum0_0_0_0, 16u);
          }
          workgroupBarrier();
          if (subgroup_number / 2u == 1u) {
`;

t.test("half of the subgroups of 64 lanes store results at once", (t) => {
  const code = printWgsl(kernelOf({}), { matrices: 64 });
  t.match(code, "subgroup_results: array<f32, 512>;");
  t.match(code, IN_TURNS);
  t.end();
});

t.test("matrixFaults() finds matrix forms that differ from their kernel", (t) => {
  const kernel = kernelOf({});
  t.strictSame(matrixFaults(kernel), []);
  const change = (
    of: (s: ReturnType<typeof matrixStatements>[number]) => object,
    changed = kernel,
  ) => {
    const form = structuredClone(changed.matrixForm!);
    for (const s of matrixStatements(form)) Object.assign(s, of(s));
    const body = expandMatrices(form, changed.workgroupSize) ?? changed.body;
    return matrixFaults({ ...changed, matrixForm: form, body }).join("; ");
  };
  const { body } = kernelOf({ k: 80 });
  const operand = shared("left_tile", u32(0), "u32");
  t.match(matrixFaults({ ...kernel, body }).join(), /is not the expansion/);
  for (
    const [change_, wanted] of [
      [
        { matrices: { rows: 24 } },
        /multiplies 568 elements of array 'left_tile'; .*not multiples of 16/,
      ],
      [{ matrices: { columns: 48 } }, /does not use tiles/],
      [{ matrices: { names: ["ghost"] } }, /does not use tiles/],
      [{ multiply: { depth: 8 } }, /not multiples of 16/],
      [{ multiply: { left: "ghost" } }, /376 elements of array 'ghost'/],
      [{ multiply: { leftStride: 12 } }, /cannot multiply rows of array/],
      [{ multiply: { rightStride: 64 } }, /cannot multiply rows of array/],
      [{ multiply: { transposed: true } }, /17288 elements of array 'right_t/],
      [
        {
          multiply: {
            products: [{ name: "sum0", right: "right_tile0", from: 8 }],
          },
        },
        /cannot multiply from element 8 of 'right_tile0'/,
      ],
      [{ results: { values: [] } }, /0 values for results of 1 matrices/],
      [
        { results: { row: { name: "row", from: operand, end: u32(0) } } },
        /loads from operand 'left_tile'/,
      ],
    ] as const
  ) {
    const changes = change_ as { readonly [op: string]: object };
    t.match(change((s) => changes[s.op] ?? {}), wanted);
  }
  const scaled = attentionKernel(false, false);
  t.strictSame(matrixFaults(scaled), []);
  for (
    const [factors, wanted] of [
      ["ghost", /scales by 64 elements of array 'ghost'/],
      ["left_tile", /cannot scale by operand 'left_tile'/],
    ] as const
  ) {
    t.match(
      change((s) => s.op === "scaleRows" ? { factors } : {}, scaled),
      wanted,
    );
  }
  t.end();
});

const FEATURE = "chromium-experimental-subgroup-matrix";
const gpu = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
Object.assign(globalThis, { keptNull: gpu });
const adapter = await politely(gpu.requestAdapter());
const skipTint = adapter?.features.has(FEATURE)
  ? false
  : `the WebGPU implementation does not have ${FEATURE}`;

t.test("Tint accepts subgroup matrices", { skip: skipTint }, async (t) => {
  const device = await politely(adapter!.requestDevice({
    requiredFeatures: ["shader-f16", "subgroups", FEATURE] as GPUFeatureName[],
    requiredLimits: {
      maxStorageBuffersPerShaderStage:
        adapter!.limits.maxStorageBuffersPerShaderStage,
    },
  }));
  // This adapter has no memory for the other depth and for attention.
  const kernels = [
    ...STORED.flatMap((stored) =>
      [false, true].flatMap((pair) =>
        [16, 32].map((depth) => ({
          kernel: kernelOf({ stored, pair }, { rows: 64, depth }),
          // Nor for the table of 4-bit floats besides.
          fits: depth === 16 && stored !== "mxfp4" && stored !== "fp4x16",
        }))
      )
    ),
    {
      kernel: contracted({ rows: 99, batches: 2, k: 16, columns: 96 }).kernel,
      fits: true,
    },
    ...[false, true].flatMap((half) =>
      [false, true].map((shared) => ({
        kernel: attentionKernel(half, shared),
        fits: false,
      }))
    ),
  ];
  for (const { kernel, fits } of kernels) {
    t.strictSame([...readTree(kernel).faults], []);
    for (const matrices of [32, 64]) {
      const code = printWgsl(kernel, { matrices });
      t.match(code, /subgroupMatrixMultiplyAccumulate/);
      device.pushErrorScope("validation");
      const module = device.createShaderModule({ code });
      const { messages } = await politely(module.getCompilationInfo());
      t.strictSame(messages.map((m) => `${m.lineNum}: ${m.message}`), []);
      if (fits) {
        device.createComputePipeline({ layout: "auto", compute: { module } });
      }
      const error = await politely(device.popErrorScope());
      t.equal(error?.message, undefined, `${kernel.name} ${matrices}`);
    }
  }
  device.destroy();
});

t.test(
  "devices with subgroup matrices use them",
  { skip: skipTint },
  async (t) => {
    const config = { componentType: "f16", resultComponentType: "f32" };
    const described = (size: number) =>
      describeAdapter({
        features: adapter!.features,
        limits: adapter!.limits,
        info: {
          subgroupMinSize: 32,
          subgroupMaxSize: 32,
          subgroupMatrixConfigs: [{ ...config, M: 16, N: 16, K: size }],
        } as unknown as GPUAdapterInfo,
      } as GPUAdapter, {
        number: 0,
        gpu,
        request: () => requestAdapter(gpu),
      });
    t.equal(described(8).matrices, undefined);
    const found = described(16);
    t.equal(found.matrices, 32);
    const device = await createGpuDevice(found);
    const kernel = kernelOf({}, { rows: 64 });
    // The implementation rejects text with features that the device does not have.
    await device.prepare({ [kernel.name]: { tree: kernel } });
    device.destroy();
    await t.rejects(
      createGpuDevice(described(8)).then((plain) =>
        plain.prepare({
          [kernel.name]: {
            tree: kernel,
            wgsl: printWgsl(kernel, { matrices: 32 }),
          },
        })
      ),
      /Cannot compile/,
    );
  },
);

/** Families with standard, latent and shared experts, and with MXFP4 weights. */
const FAMILIES = [
  ...["olmoe-16e", "deepseekv3-16e", "gptoss-8e-mxfp4", "qwen2moe-8e"],
  ...["mixtral-8e", "deepseekv2-lite-8e"],
];

/** Max relative root mean square error of logits, and max loss of the chosen token relative to the largest logit. */
const ERROR = 2 ** -7;

t.test(
  "logits of a recorded family",
  { skip: skipUnasked("cpu") },
  async (t) => {
    const name = FAMILIES[Math.abs(SEED) % FAMILIES.length]!;
    const ids = (await readReference(name))["p0.input_ids"]!.data;
    const prompt = Array.from(
      { length: 100 },
      (_, i) => ids[(7 * i + (i >> 3)) % ids.length]!,
    );
    const run = async (how: object, replay?: Tensors) => {
      const setup = { mesh: "ep=2", adapter: "cpu", ...how } as const;
      const loaded = await loadCheckpoint(name, setup);
      const batch = padBatch([prompt]);
      const outputs = await runOpened(loaded, batch, replay ? { replay } : {});
      await loaded.close();
      return outputs;
    };
    const outputs = await run({});
    // With the experts of the exact run: a router near a tie may choose another.
    const fast = { numerics: "fast", operands: "f16", replay: true };
    const exact = outputs["logits"]!;
    const width = exact.shape.at(-1)!;
    const square = (of: readonly number[]) =>
      Math.sqrt(sum(of.map((x) => x ** 2)));
    // GPUs have other launches of latents.
    for (const kind of ["cpu", "gpu"] as const) {
      const replayed = await run({ ...fast, tuning: TUNING[kind] }, outputs);
      const found = replayed["logits"]!;
      let rounded = 0;
      for (let at = 0; at < exact.data.length; at += width) {
        const row = [...exact.data.subarray(at, at + width)];
        const other = [...found.data.subarray(at, at + width)];
        const relative = square(row.map((x, i) => x - other[i]!)) / square(row);
        rounded += relative > 0 ? 1 : 0;
        const token = `${name}, ${kind}, token ${at / width}`;
        t.ok(relative < ERROR, `${token}: ${relative}`);
        const best = Math.max(...row);
        const chosen = row[other.indexOf(Math.max(...other))]!;
        t.ok(best - chosen <= ERROR * best, token);
      }
      t.equal(rounded, prompt.length, `${name}, ${kind}: operands are rounded`);
    }
  },
);

t.test(
  "16-bit operands on the command line",
  { skip: skipUnasked("cpu") },
  async (t) => {
    const demo = checkpointFolder("demo-lm");
    const file = join(temporaryFolder(t), "text.txt");
    writeFileSync(file, TEXT.repeat(12));
    const fast = ["--adapter", "cpu", "--numerics", "fast"];
    const f16 = [...fast, "--operands", "f16"];
    const score = async (flags: readonly string[]) => {
      const { out, err, code } = await switchyard([
        ...["perplexity", demo, file, "--json", "--window", "256"],
        ...flags,
      ]);
      t.equal(code, 0, err);
      const found = JSON.parse(out) as { perplexity: { value: number } };
      return found.perplexity.value;
    };
    const exact = await score(["--adapter", "cpu"]);
    t.equal(await score(fast), exact, "WebAssembly does not fuse");
    for (const mesh of ["ep=1", "ep=2", "tp=2,ep=2"]) {
      const found = await score([...f16, "--mesh", mesh]);
      t.ok(found !== exact && Math.abs(found / exact - 1) < 0.002, `${found}`);
    }
    const text = async (flags: readonly string[]) => {
      const { out, err, code } = await switchyard([
        ...["generate", demo, "--prompt", TEXT.repeat(4), "--max-new-tokens"],
        ...["24", "--temperature", "0", ...flags],
      ]);
      t.equal(code, 0, err);
      return out;
    };
    t.equal(await text(f16), await text(["--adapter", "cpu"]));
    const { err, code } = await switchyard([
      ...["generate", demo, "--prompt", "a", "--operands", "f16"],
    ]);
    t.equal(code, 1);
    t.match(err, /^Cannot use operands 'f16': numerics are 'exact'/);
    await t.rejects(
      runCase(await stepCase(), "cpu", { numerics: "fast", operands: "f16" }),
      /^Cannot train with operands 'f16'/,
    );
  },
);
