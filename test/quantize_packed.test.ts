/** Quantizing packed checkpoints: elements are copied if the format has them, and decoded otherwise. */
// needs: cpu
// rotates with: engine/quantize/, engine/encodings/

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gguf } from "@huggingface/gguf";
import t, { type Test } from "tap";
import { readTensors } from "../engine/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { readRaw, switchyard, temporaryFolder } from "./helpers/cli.ts";
import { runPrompts, writeCheckpoint } from "./helpers/quantized_checkpoint.ts";

const GPT_OSS = checkpointFolder("gptoss-8e-mxfp4");

/** Matrices of experts: the name in GGUF files, in folders and in the source, whose rows belong to `parts` of them. */
const MATRICES = [
  {
    filed: "ffn_gate_exps",
    separate: "gate_proj",
    source: "gate_up_proj",
    part: 0,
    parts: 2,
  },
  {
    filed: "ffn_up_exps",
    separate: "up_proj",
    source: "gate_up_proj",
    part: 1,
    parts: 2,
  },
  {
    filed: "ffn_down_exps",
    separate: "down_proj",
    source: "down_proj",
    part: 0,
    parts: 1,
  },
] as const;

async function quantize(
  t: Test,
  from: string,
  ...[to, out, ...more]: readonly [string, string, ...string[]]
): Promise<string> {
  const { code, err, out: printed } = await switchyard([
    ...["quantize", from, "--to", to, "--out", out, ...more],
  ]);
  t.equal(code, 0, err);
  return printed;
}

/** The bytes of the tensors of a GGUF file whose rows have `rowBytes` bytes. */
async function ggufTensor(path: string, name: string): Promise<Buffer> {
  const { tensorInfos, tensorDataOffset } = await gguf(path, {
    allowLocalFile: true,
  });
  const file = readFileSync(path);
  const at = tensorInfos.findIndex((tensor) => tensor.name === name);
  const [from, to] = [tensorInfos[at]!, tensorInfos[at + 1]]
    .map((info) => Number(tensorDataOffset) + Number(info?.offset ?? NaN));
  return file.subarray(from, Number.isNaN(to) ? undefined : to);
}

/** A row of MXFP4 as blocks: for 32 elements their scale, and element i beside element i + 16. */
function blocksOf(codes: Uint8Array, scales: Uint8Array): number[] {
  const code = (i: number) => codes[i >> 1]! >> 4 * (i % 2) & 15;
  return [...scales].flatMap((scale, group) => [
    scale,
    ...Array.from(
      { length: 16 },
      (_, i) => code(32 * group + i) | code(32 * group + 16 + i) << 4,
    ),
  ]);
}

t.test("MXFP4 experts are copied to GGUF files", async (t) => {
  const out = join(temporaryFolder(t), "model.gguf");
  const printed = await quantize(t, GPT_OSS, "mxfp4", out);
  t.match(printed, /of 223\.4 KiB \(.*MXFP4 102\.0 KiB/, "bytes of the file");
  const raw = await readRaw(join(GPT_OSS, "model.safetensors"));
  const layer = "model.layers.1.mlp.experts";
  for (const { filed, source, part, parts } of MATRICES) {
    const codes = raw[`${layer}.${source}_blocks`]!;
    const scales = raw[`${layer}.${source}_scales`]!;
    const [experts = 0, rows = 0, groups = 0] = codes.shape;
    const wanted: number[] = [];
    // Rows of gates and of up projections alternate.
    for (let row = part; row < experts * rows; row += parts) {
      wanted.push(...blocksOf(
        codes.data.subarray(16 * groups * row, 16 * groups * (row + 1)),
        scales.data.subarray(groups * row, groups * (row + 1)),
      ));
    }
    const found = await ggufTensor(out, `blk.1.${filed}.weight`);
    t.ok(
      found.subarray(0, wanted.length).equals(Uint8Array.from(wanted)),
      filed,
    );
  }
});

t.test("other formats of MXFP4 experts predict alike", async (t) => {
  const folder = temporaryFolder(t);
  const logitsOf = async (path: string) => {
    const { logits } = await runPrompts(path, "ep=1");
    return Float32Array.from(logits!.data);
  };
  const wanted = await logitsOf(GPT_OSS);
  const size = wanted.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  for (
    const [to, name, limit, ...rule] of [
      // The bits of the decoded numbers.
      ["q8_0", "f32.gguf", 0, "--rule", "*=f32"],
      ["mxfp4", "mxfp4", 0],
      // Rounded again: limits for weights in the wrong place, not for exact rounding.
      ["q8_0", "q8_0.gguf", 0.1],
      ["q4_k", "q4_k.gguf", 0.4],
    ] as const
  ) {
    const out = join(folder, name);
    await quantize(t, GPT_OSS, to, out, ...rule);
    const found = await logitsOf(out);
    const error = found.reduce(
      (most, x, i) => Math.max(most, Math.abs(x - wanted[i]!)),
      0,
    ) / size;
    t.ok(error <= limit, `${name}: ${error}`);
  }
  // The decoded numbers are rounded as those of an F32 file.
  for (const to of ["q8_0", "q4_k"]) {
    const again = join(folder, `again-${to}.gguf`);
    await quantize(t, join(folder, "f32.gguf"), to, again);
    const [direct, twice] = [join(folder, `${to}.gguf`), again]
      .map((path) => readFileSync(path));
    t.ok(direct!.equals(twice!), `${to} of decoded numbers`);
  }
  const [from, to] = await Promise.all(
    [GPT_OSS, join(folder, "mxfp4")].map((path) =>
      readRaw(join(path, "model.safetensors"))
    ),
  );
  t.strictSame(
    Object.entries(to!).map(([name, { data }]) => [
      name,
      Buffer.compare(data, from![name]!.data),
    ]).sort(),
    Object.keys(from!).map((name) => [name, 0]).sort(),
    "a folder has the tensors of its source",
  );
});

/** The numbers of MXFP4 elements: a byte per 32 elements is the power of two that scales them. */
function mxfp4Numbers(codes: Uint8Array, scales: Uint8Array): number[] {
  const sizes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  return Array.from({ length: 2 * codes.length }, (_, i) => {
    const code = codes[i >> 1]! >> 4 * (i % 2) & 15;
    const size = sizes[code & 7]! * 2 ** (scales[i >> 5]! - 127);
    return code & 8 ? -size : size;
  });
}

t.test("FP8 matrices of experts are near those of MXFP4", async (t) => {
  const out = join(temporaryFolder(t), "fp8");
  await quantize(t, GPT_OSS, "fp8", out);
  const raw = await readRaw(join(GPT_OSS, "model.safetensors"));
  const found = await readTensors(join(out, "model.safetensors"), files);
  const layer = "model.layers.1.mlp.experts";
  for (const { separate, source, part, parts } of MATRICES) {
    const codes = raw[`${layer}.${source}_blocks`]!;
    const [experts = 0, rows = 0, groups = 0] = codes.shape;
    const scales = raw[`${layer}.${source}_scales`]!;
    const numbers = mxfp4Numbers(codes.data, scales.data);
    const columns = 32 * groups;
    for (let expert = 0; expert < experts; expert++) {
      const matrix = `${layer}.${expert}.${separate}.weight`;
      // A matrix of at most 128x128 has one scale.
      const [scale = NaN] = found[`${matrix}_scale_inv`]!.data;
      const wrong = [...found[matrix]!.data].filter((x, i) => {
        const row = expert * rows + part + parts * Math.floor(i / columns);
        const wanted = numbers[row * columns + i % columns]!;
        // Half of the distance to the next E4M3: 3 bits of mantissa, multiples of 2^-9 if subnormal.
        const limit = Math.max(Math.abs(wanted) / 16, scale * 2 ** -10);
        return !(Math.abs(x - wanted) <= limit * 1.001);
      });
      t.strictSame(wrong, [], matrix);
    }
  }
});

t.test("packed matrices have the bytes of their decoded numbers", async (t) => {
  const folder = temporaryFolder(t);
  for (const name of ["deepseekv3-16e-fp8", "kimik2-16e-int4"]) {
    const from = checkpointFolder(name);
    const decoded = await readTensors(join(from, "model.safetensors"), files, {
      wanted: (name) => /\.(weight|e_score_correction_bias)$/.test(name),
    });
    const { quantization_config: _, ...config } = JSON.parse(
      readFileSync(join(from, "config.json"), "utf8"),
    );
    const plain = join(folder, name);
    await writeCheckpoint(
      plain,
      Object.fromEntries(
        Object.entries(decoded).map(([name, { shape, data }]) => [name, {
          dtype: "F32",
          shape,
          data: Float32Array.from(data),
        }]),
      ),
      config,
    );
    const bytesOf = async (path: string, out: string) => {
      const file = join(folder, out);
      await quantize(t, path, "q8_0", file);
      return readFileSync(file);
    };
    const found = await bytesOf(from, `${name}-packed.gguf`);
    t.ok(found.equals(await bytesOf(plain, `${name}-plain.gguf`)), name);
  }
});

t.test("blocks of the same type are copied", async (t) => {
  const folder = temporaryFolder(t);
  const demo = checkpointFolder("demo-lm");
  const path = (name: string) => join(folder, name);
  const same = (a: string, b: string) =>
    t.ok(readFileSync(path(a)).equals(readFileSync(path(b))), `${a} and ${b}`);
  for (const to of ["q8_0", "q4_0", "mxfp4"]) {
    await quantize(t, demo, to, path(`${to}.gguf`));
    await quantize(t, path(`${to}.gguf`), to, path(`${to}-again.gguf`));
    same(`${to}.gguf`, `${to}-again.gguf`);
  }
  await quantize(
    t,
    path("q4_0.gguf"),
    "q8_0",
    path("kept.gguf"),
    ...["--rule", "*=keep"],
  );
  const experts = "blk.2.ffn_up_exps.weight";
  const [kept, first] = await Promise.all(
    ["kept.gguf", "q4_0.gguf"].map((name) => ggufTensor(path(name), experts)),
  );
  t.ok(kept!.equals(first!), "kept blocks");
  for (const to of ["fp8", "mxfp4"]) {
    await quantize(t, demo, to, path(to));
    await quantize(t, path(to), to, path(`${to}-again`));
    const [first, again] = await Promise.all(
      [to, `${to}-again`].map((name) =>
        readRaw(path(`${name}/model.safetensors`))
      ),
    );
    t.strictSame(again, first, `tensors of ${to}`);
  }
});
