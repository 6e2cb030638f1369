/**
 * Experts of Nemotron-3 Super between two projections compute what experts of the recorded Nemotron-H do with the
 * products of the matrices.
 */
// needs: cpu
// rotates with: models/families/nemotron

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { quantizeCheckpoint, readTensors } from "../engine/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import {
  type FileTensor,
  outputsOf,
  runPrompts,
  writeCheckpoint,
} from "./helpers/quantized_checkpoint.ts";

const MODEL = checkpointFolder("nemotronh-16e");
const [EMBED, LATENT, FFN] = [64, 24, 32];

/** Reproducible numbers of about unit variance over `columns`. */
function matrix(seed: number, rows: number, columns: number): Float32Array {
  return Float32Array.from(
    { length: rows * columns },
    (_, i) => 2 * Math.sin(12.9898 * (i + 1) + seed) / Math.sqrt(columns),
  );
}

/** a [rows inner] times b [inner columns], in f64. */
function product(
  a: Float32Array,
  b: Float32Array,
  inner: number,
): Float32Array<ArrayBuffer> {
  const columns = b.length / inner;
  return Float32Array.from({ length: a.length / inner * columns }, (_, at) => {
    const [row, column] = [Math.floor(at / columns), at % columns];
    let sum = 0;
    for (let i = 0; i < inner; i++) {
      sum += a[row * inner + i]! * b[i * columns + column]!;
    }
    return sum;
  });
}

/** Writes a checkpoint with projections, and one with the products. */
async function writeBoth(latent: string, plain: string): Promise<void> {
  const tensors = await readTensors(join(MODEL, "model.safetensors"), files);
  const withLatent: { [name: string]: FileTensor } = {};
  const withProducts: { [name: string]: FileTensor } = {};
  const f32 = (data: Float32Array, shape: readonly number[]) =>
    ({ dtype: "F32", shape, data: Float32Array.from(data) }) as const;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    // The last layer has no experts, which GGUF files cannot have.
    if (name.startsWith("backbone.layers.5.")) continue;
    const values = Float32Array.from(data);
    withLatent[name] = withProducts[name] = f32(values, shape);
    const [, mixer, layer, expert, which] =
      /^(.*\.(\d+)\.mixer)\.experts\.(\d+)\.(up|down)_proj\.weight$/
        .exec(name) ?? [];
    if (mixer === undefined) continue;
    const inward = matrix(Number(layer), LATENT, EMBED);
    const outward = matrix(Number(layer) + 0.5, EMBED, LATENT);
    withLatent[`${mixer}.fc1_latent_proj.weight`] = f32(inward, [
      LATENT,
      EMBED,
    ]);
    withLatent[`${mixer}.fc2_latent_proj.weight`] = f32(outward, [
      EMBED,
      LATENT,
    ]);
    const size = which === "up"
      ? [FFN, LATENT] as const
      : [LATENT, FFN] as const;
    const own = matrix(Number(expert) + (which === "up" ? 7 : 8), ...size);
    withLatent[name] = f32(own, size);
    withProducts[name] = which === "up"
      ? f32(product(own, inward, LATENT), [FFN, EMBED])
      : f32(product(outward, own, LATENT), [EMBED, FFN]);
  }
  const config = JSON.parse(
    await readFile(join(MODEL, "config.json"), "utf8"),
  ) as { readonly layers_block_type: readonly string[] };
  const fields = {
    ...config,
    layers_block_type: config.layers_block_type.slice(0, 5),
  };
  await writeCheckpoint(plain, withProducts, fields);
  await writeCheckpoint(latent, withLatent, {
    ...fields,
    moe_latent_size: LATENT,
  });
}

t.test("experts between two projections", async (t) => {
  const root = t.testdir({});
  const [latent, plain] = [join(root, "latent"), join(root, "plain")];
  await writeBoth(latent, plain);
  const outputs = [
    await runPrompts(latent, "ep=1"),
    await runPrompts(plain, "ep=1"),
  ];
  const [found, wanted] = outputs.map(({ logits }) => logits!.data);
  const differences = Array.from(
    wanted!,
    (x, i) => Math.abs(x - found![i]!),
  );
  const largest = Math.max(...differences);
  t.ok(largest < 1e-4, `logits differ by at most ${largest}`);
  t.ok(Math.max(...Array.from(wanted!, Math.abs)) > 1, "logits are not small");
  const digest = await outputsOf(latent, "ep=1");
  for (const mesh of ["ep=4", "tp=2,ep=2"]) {
    t.equal(await outputsOf(latent, mesh), digest, mesh);
  }
  const gguf = join(root, "model.gguf");
  await quantizeCheckpoint(latent, files, {
    to: "q8_0",
    out: gguf,
    rules: [{ pattern: "*", type: "keep" }],
  });
  t.equal(await outputsOf(gguf, "ep=2"), digest, "as GGUF");
});
