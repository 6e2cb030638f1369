/** Kimi-K2.5 computes what its text model, the recorded Kimi-K2, does. */
// needs: cpu
// rotates with: models/kimi, models/families/deepseek

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import {
  checkTarget,
  loadTarget,
  quantizeCheckpoint,
  summarizeTarget,
} from "../engine/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { readRaw } from "./helpers/cli.ts";
import { outputsOf, writeCheckpoint } from "./helpers/quantized_checkpoint.ts";
import { readJson } from "./helpers/read_tensors.ts";

const MODEL = checkpointFolder("kimik2-16e-int4");
const PUBLISHED = checkpointFolder("configs/kimi-k2.5.json");

/**
 * Writes the checkpoint as the text model of a model of text and images, with the other fields of the published one.
 */
async function writeWrapped(folder: string): Promise<void> {
  const tensors = await readRaw(join(MODEL, "model.safetensors"));
  const image = { dtype: "F32", shape: [1], data: Float32Array.of(1) };
  await writeCheckpoint(folder, {
    ...Object.fromEntries(
      Object.entries(tensors)
        .map(([name, tensor]) => [`language_model.${name}`, tensor]),
    ),
    "vision_tower.patch_embed.proj.bias": image,
    "mm_projector.pre_norm.bias": image,
  }, {
    ...readJson(PUBLISHED),
    text_config: readJson(join(MODEL, "config.json")),
  });
}

t.test("the text model of Kimi-K2.5", async (t) => {
  const root = t.testdir({});
  const folder = join(root, "wrapped");
  await writeWrapped(folder);
  t.strictSame(await checkTarget(folder, files), []);
  const wanted = await outputsOf(MODEL, "ep=1");
  for (const mesh of ["ep=1", "tp=2,ep=2"]) {
    t.equal(await outputsOf(folder, mesh), wanted, mesh);
  }
  const summaryOf = async (path: string) =>
    (await summarizeTarget(
      await loadTarget(path, files, { withoutWeights: true }),
      files,
    )).summary.model.stored;
  const config = join(root, "config.json");
  await writeFile(config, await readFile(join(folder, "config.json")));
  t.strictSame(
    await summaryOf(config),
    await summaryOf(join(MODEL, "config.json")),
    "planned from config.json",
  );
  const gguf = join(root, "model.gguf"), same = join(root, "same.gguf");
  const rules = [{ pattern: "*", type: "keep" }] as const;
  await quantizeCheckpoint(folder, files, { to: "q8_0", out: gguf, rules });
  await quantizeCheckpoint(MODEL, files, { to: "q8_0", out: same, rules });
  t.ok((await readFile(gguf)).equals(await readFile(same)), "as GGUF");
  const fp8 = join(root, "fp8");
  await quantizeCheckpoint(folder, files, { to: "fp8", out: fp8 });
  t.match(readJson(join(fp8, "config.json")), {
    quantization_config: { quant_method: "fp8" },
    text_config: { quantization_config: undefined },
  });
});
