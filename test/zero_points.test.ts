/** GPTQ, AWQ and INT4 with zero points have the bits of the decoded weights, on meshes and devices. */
// needs: cpu
// rotates with: engine/encodings/

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { readTensors } from "../engine/mod.ts";
import { narrow, widen } from "../runtime/half.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { integers, switchyard } from "./helpers/cli.ts";
import {
  type FileTensor,
  outputsOf,
  quantizedOf,
  writeCheckpoint,
} from "./helpers/quantized_checkpoint.ts";

const MODEL = checkpointFolder("qwen3moe-16e");
const GROUP = 32;

/** A matrix of 4-bit codes. */
interface Coded {
  readonly rows: number;
  readonly columns: number;
  readonly codes: Uint8Array;
  /** Bits of 16-bit floats, one per group of a row, as zero points. */
  readonly scales: Uint16Array;
  readonly zeros: Uint8Array;
}

/** Quantizes rows, and replaces them by their decoded values. */
function quantized(
  x: Float32Array,
  [rows, columns]: readonly [number, number],
  dtype: "f16" | "bf16",
): Coded {
  const groups = Array.from(
    { length: x.length / GROUP },
    (_, i) => x.subarray(i * GROUP, (i + 1) * GROUP),
  );
  const wide = groups.map((group) =>
    (Math.max(...group) - Math.min(...group)) / 14
  );
  const scales = narrow(dtype, Float32Array.from(wide));
  const values = widen(dtype, scales);
  // GPTQ has no zero point 0.
  const zeros = Uint8Array.from(
    groups,
    (group, i) =>
      Math.min(15, Math.max(1, Math.round(-Math.min(...group) / values[i]!))),
  );
  const codes = Uint8Array.from(x, (value, i) => {
    const at = Math.floor(i / GROUP);
    const code = Math.round(value / values[at]!) + zeros[at]!;
    return Math.min(15, Math.max(0, code));
  });
  codes.forEach((code, i) => {
    const at = Math.floor(i / GROUP);
    x[i] = (code - zeros[at]!) * values[at]!;
  });
  return { rows, columns, codes, scales, zeros };
}

/** Words of eight codes of a matrix [rows, columns], along rows. `order`: columns of a word, lowest bits first. */
function words(
  codes: Uint8Array,
  order = [0, 1, 2, 3, 4, 5, 6, 7],
): Int32Array {
  return Int32Array.from(
    { length: codes.length / 8 },
    (_, word) =>
      order.reduce((bits, of, i) => bits | codes[8 * word + of]! << 4 * i, 0),
  );
}

/** Order of the codes of an AWQ word. */
const AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7];

function transposed<T extends Uint8Array | Uint16Array | Int32Array>(
  values: T,
  columns: number,
): T {
  const rows = values.length / columns;
  return values.map((_, i) =>
    values[(i % rows) * columns + Math.floor(i / rows)]!
  ) as T;
}

type Layout = (matrix: Coded) => { readonly [suffix: string]: FileTensor };

/** Layouts with the dtype of their scales. */
const LAYOUTS: {
  readonly [name: string]: readonly ["f16" | "bf16", Layout];
} = {
  GPTQ: ["f16", ({ rows, columns, codes, scales, zeros }) => {
    const groups = columns / GROUP;
    const below = transposed(zeros.map((zero) => zero - 1), groups);
    return {
      qweight: {
        dtype: "I32",
        shape: [columns / 8, rows],
        data: transposed(words(codes), columns / 8),
      },
      qzeros: { dtype: "I32", shape: [groups, rows / 8], data: words(below) },
      scales: {
        dtype: "F16",
        shape: [groups, rows],
        data: transposed(scales, groups),
      },
    };
  }],
  AWQ: ["f16", ({ rows, columns, codes, scales, zeros }) => {
    const groups = columns / GROUP;
    return {
      qweight: {
        dtype: "I32",
        shape: [columns, rows / 8],
        data: words(transposed(codes, columns), AWQ_ORDER),
      },
      qzeros: {
        dtype: "I32",
        shape: [groups, rows / 8],
        data: words(transposed(zeros, groups), AWQ_ORDER),
      },
      scales: {
        dtype: "F16",
        shape: [groups, rows],
        data: transposed(scales, groups),
      },
    };
  }],
  INT4: ["bf16", ({ rows, columns, codes, scales, zeros }) => {
    const groups = columns / GROUP;
    const packed = words(transposed(zeros, groups));
    return {
      weight_packed: {
        dtype: "I32",
        shape: [rows, columns / 8],
        data: words(codes),
      },
      weight_scale: { dtype: "BF16", shape: [rows, groups], data: scales },
      weight_zero_point: {
        dtype: "I32",
        shape: [rows / 8, groups],
        data: transposed(packed, rows / 8),
      },
      weight_shape: {
        dtype: "I64",
        shape: [2],
        data: BigInt64Array.of(BigInt(rows), BigInt(columns)),
      },
    };
  }],
};

for (const [name, [dtype, layout]] of Object.entries(LAYOUTS)) {
  t.test(name, async (t) => {
    const root = t.testdir({});
    const folder = (name: string) => join(root, name);
    const config = JSON.parse(
      await readFile(join(MODEL, "config.json"), "utf8"),
    ) as object;
    const [plain, packed]: { [name: string]: FileTensor }[] = [{}, {}];
    const tensors = await readTensors(join(MODEL, "model.safetensors"), files);
    for (const [name, { shape, data }] of Object.entries(tensors)) {
      const values = Float32Array.from(data);
      const [rows = 1, columns = 1, ...rest] = shape;
      plain![name] = { dtype: "F32", shape, data: values };
      if (rest.length > 0 || !/(experts\.\d+\..*|_proj)\.weight$/.test(name)) {
        packed![name] = plain![name];
        continue;
      }
      const parts = layout(quantized(values, [rows, columns], dtype));
      const module = name.replace(/\.weight$/, "");
      for (const [suffix, tensor] of Object.entries(parts)) {
        packed![`${module}.${suffix}`] = tensor;
      }
    }
    t.ok(
      Object.keys(packed!).some((name) => /experts.*(zero|scale)/.test(name)),
    );
    await writeCheckpoint(folder("plain"), plain!, config);
    await writeCheckpoint(folder("packed"), packed!, config);
    const native = await whyNotNative() === undefined ? "native" : "cpu";
    const wanted = await outputsOf(folder("plain"), "ep=1");
    for (
      const [mesh, adapter] of [
        ["ep=1", "cpu"],
        ["ep=4", native],
        ["tp=2,ep=2", native],
        ["tp=2", "cpu"],
      ] as const
    ) {
      t.equal(
        await outputsOf(folder("packed"), mesh, adapter),
        wanted,
        `${adapter} on ${mesh}`,
      );
    }
    t.equal(
      await quantizedOf(folder("packed")),
      await quantizedOf(folder("plain")),
      "quantized",
    );
    if (name !== "GPTQ") return;
    // 'desc_act': the columns of a group are not consecutive.
    const reordered = "model.layers.0.self_attn.q_proj.g_idx";
    const [columns] = tensors[reordered.replace("g_idx", "weight")]!.shape
      .slice(1);
    const quantize = async (groupOf: (column: number) => number) => {
      const order = integers(
        [columns!],
        Array.from({ length: columns! }, (_, column) => groupOf(column)),
      );
      await writeCheckpoint(
        folder("ordered"),
        { ...packed!, [reordered]: order },
        config,
      );
      const out = folder("ordered.gguf");
      let written = false;
      const { code, err } = await switchyard([
        ...["quantize", folder("ordered"), "--to", "q8_0", "--out", out],
      ], {
        ...files,
        write: async (path, parts) => {
          written = true;
          await files.write(path, parts);
        },
      });
      return { code, err, written };
    };
    const groups = columns! / GROUP;
    t.match(await quantize((column) => column % groups), {
      code: 1,
      err:
        /^Cannot read tensor '.*q_proj\.g_idx' of '.*': its columns are reordered \('desc_act'\)\. Use a quantization without it\n$/,
      written: false,
    });
    t.strictSame(
      await quantize((column) => Math.floor(column / GROUP)),
      { code: 0, err: "", written: true },
      "consecutive columns",
    );
  });
}
