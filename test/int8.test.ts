/** Int8 weights with a scale per output channel, as compressed-tensors stores them. */
// needs: cpu

import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import {
  loadTarget,
  openTarget,
  readTensors,
  runOpened,
  summarizeTarget,
  writeSafetensors,
} from "../engine/mod.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import {
  checkpointFolder,
  files,
  meshOf,
  padBatch,
} from "./helpers/checkpoints.ts";
import { skipUnasked } from "./helpers/needs.ts";

const MODEL = checkpointFolder("mixtral-8e");
const QUANTIZED = /(_proj|w[123])\.weight$/;
const QUANTIZATION = {
  quant_method: "compressed-tensors",
  format: "int-quantized",
  config_groups: {
    group_0: { weights: { num_bits: 8, type: "int", strategy: "channel" } },
  },
};

interface Tensor {
  readonly dtype: "F32" | "I8";
  readonly shape: readonly number[];
  readonly data: Float32Array | Int8Array;
}

async function write(
  folder: string,
  tensors: { readonly [name: string]: Tensor },
  config: object,
): Promise<void> {
  const header: { [name: string]: unknown } = {};
  let end = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    const data_offsets = [end, end += data.byteLength];
    header[name] = { dtype, shape, data_offsets };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const parts = Object.values(tensors).map(({ data }) =>
    Buffer.from(data.buffer)
  );
  await writeFile(
    join(folder, "model.safetensors"),
    Buffer.concat([length, text, ...parts]),
  );
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
}

/** Writes a checkpoint with int8 matrices, and one with the decoded values; returns the packed bytes. */
async function writeBoth(int8: string, plain: string): Promise<number> {
  const tensors = await readTensors(join(MODEL, "model.safetensors"), files);
  const packed: { [name: string]: Tensor } = {};
  const decoded: { [name: string]: Tensor } = {};
  let bytes = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const tensor = {
      dtype: "F32",
      shape,
      data: Float32Array.from(data),
    } as const;
    packed[name] = decoded[name] = tensor;
    if (!QUANTIZED.test(name)) continue;
    const [rows, columns] = shape as [number, number];
    const codes = new Int8Array(rows * columns);
    const scales = new Float32Array(rows);
    for (let row = 0; row < rows; row++) {
      const part = tensor.data.subarray(row * columns, (row + 1) * columns);
      scales[row] = Math.max(...part.map(Math.abs)) / 127;
      part.forEach((x, i) =>
        codes[row * columns + i] = Math.round(x / scales[row]!)
      );
    }
    // The smallest code, which symmetric scales do not use.
    codes[0] = -128;
    packed[name] = { dtype: "I8", shape, data: codes };
    packed[`${name}_scale`] = { dtype: "F32", shape: [rows, 1], data: scales };
    const values = Float32Array.from(
      codes,
      (code, i) => code * scales[Math.floor(i / columns)]!,
    );
    decoded[name] = { dtype: "F32", shape, data: values };
    bytes += codes.byteLength + scales.byteLength;
  }
  const config = JSON.parse(
    await readFile(join(MODEL, "config.json"), "utf8"),
  ) as object;
  await write(int8, packed, { ...config, quantization_config: QUANTIZATION });
  await write(plain, decoded, config);
  return bytes;
}

async function outputsOf(
  folder: string,
  mesh: string,
  adapter: "cpu" | "native" = "cpu",
): Promise<string> {
  const opened = await openTarget(await loadTarget(folder, files), files, {
    sharing: "shared",
    adapter,
    mesh: meshOf(mesh),
    need: { tokens: 16, sequences: 2, context: 16 },
  });
  try {
    const prompts = [[5, 100, 7, 3, 200, 9], [17, 80, 3]];
    const outputs = await runOpened(opened, padBatch(prompts));
    return createHash("sha256").update(writeSafetensors(outputs)).digest("hex");
  } finally {
    await opened.close();
  }
}

t.test("int8 weights", { skip: skipUnasked("cpu") }, async (t) => {
  const [int8, plain] = [t.testdir({ int8: {}, plain: {} })]
    .flatMap((root) => [join(root, "int8"), join(root, "plain")]);
  const bytes = await writeBoth(int8!, plain!);
  const wanted = await outputsOf(plain!, "ep=1");
  const native = await whyNotNative() === undefined ? "native" : "cpu";
  for (
    const [mesh, adapter] of [
      ["ep=1", "cpu"],
      ["tp=2", native],
      ["dp=2,tp=2,ep=2", "cpu"],
    ] as const
  ) {
    t.equal(
      await outputsOf(int8!, mesh, adapter),
      wanted,
      `the bytes of the decoded values, on ${mesh}`,
    );
  }
  const { summary } = await summarizeTarget(
    await loadTarget(int8!, files),
    files,
  );
  t.equal(summary.model.stored["int8"], bytes, "bytes in the plan");
});
