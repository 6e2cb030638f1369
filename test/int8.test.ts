/** Int8 weights with a scale per output channel, as compressed-tensors stores them. */
// needs: cpu
// rotates with: engine/encodings/, engine/checkpoint/quantization_config.ts

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { loadTarget, readTensors, summarizeTarget } from "../engine/mod.ts";
import { whyNotNative } from "../runtime/native/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import {
  type FileTensor,
  outputsOf,
  quantizedOf,
  writeCheckpoint,
} from "./helpers/quantized_checkpoint.ts";

const MODEL = checkpointFolder("mixtral-8e");
const QUANTIZED = /(_proj|w[123])\.weight$/;
const QUANTIZATION = {
  quant_method: "compressed-tensors",
  format: "int-quantized",
  config_groups: {
    group_0: { weights: { num_bits: 8, type: "int", strategy: "channel" } },
  },
};

/** Writes a checkpoint with int8 matrices, and one with the decoded values; returns the packed bytes. */
async function writeBoth(int8: string, plain: string): Promise<number> {
  const tensors = await readTensors(join(MODEL, "model.safetensors"), files);
  const packed: { [name: string]: FileTensor } = {};
  const decoded: { [name: string]: FileTensor } = {};
  let bytes = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const values = Float32Array.from(data);
    packed[name] = decoded[name] = { dtype: "F32", shape, data: values };
    if (!QUANTIZED.test(name)) continue;
    const [rows, columns] = shape as [number, number];
    const codes = new Int8Array(rows * columns);
    const scales = new Float32Array(rows);
    for (let row = 0; row < rows; row++) {
      const part = values.subarray(row * columns, (row + 1) * columns);
      scales[row] = Math.max(...part.map(Math.abs)) / 127;
      part.forEach((x, i) =>
        codes[row * columns + i] = Math.round(x / scales[row]!)
      );
    }
    // The smallest code, which symmetric scales do not use.
    codes[0] = -128;
    packed[name] = { dtype: "I8", shape, data: codes };
    packed[`${name}_scale`] = { dtype: "F32", shape: [rows, 1], data: scales };
    const rounded = Float32Array.from(
      codes,
      (code, i) => code * scales[Math.floor(i / columns)]!,
    );
    decoded[name] = { dtype: "F32", shape, data: rounded };
    bytes += codes.byteLength + scales.byteLength;
  }
  const config = JSON.parse(
    await readFile(join(MODEL, "config.json"), "utf8"),
  ) as object;
  await writeCheckpoint(int8, packed, {
    ...config,
    quantization_config: QUANTIZATION,
  });
  await writeCheckpoint(plain, decoded, config);
  return bytes;
}

t.test("int8 weights", async (t) => {
  const [int8, plain] = [t.testdir({})]
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
  t.equal(await quantizedOf(int8!), await quantizedOf(plain!), "quantized");
  const { summary } = await summarizeTarget(
    await loadTarget(int8!, files),
    files,
  );
  t.equal(summary.model.stored["int8"], bytes, "bytes in the plan");
});
