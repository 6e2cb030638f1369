/** Kimi-K2.5 computes what its text model, the recorded Kimi-K2, does. */
// needs: cpu

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import {
  checkTarget,
  loadTarget,
  quantizeCheckpoint,
  summarizeTarget,
} from "../engine/mod.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { outputsOf } from "./helpers/quantized_checkpoint.ts";

const MODEL = checkpointFolder("kimik2-16e-int4");

/** Writes the checkpoint as the text model of a model of text and images. */
async function writeWrapped(folder: string): Promise<void> {
  const bytes = await readFile(join(MODEL, "model.safetensors"));
  const length = Number(bytes.readBigUInt64LE(0));
  const { __metadata__: _, ...tensors } = JSON.parse(
    bytes.subarray(8, 8 + length).toString(),
  ) as { readonly [name: string]: object };
  const data = bytes.subarray(8 + length);
  const vision = { dtype: "F32", shape: [1] };
  const header = Buffer.from(JSON.stringify({
    ...Object.fromEntries(
      Object.entries(tensors).map((
        [name, tensor],
      ) => [`language_model.${name}`, tensor]),
    ),
    "vision_tower.patch_embed.proj.bias": {
      ...vision,
      data_offsets: [data.length, data.length + 4],
    },
    "mm_projector.pre_norm.bias": {
      ...vision,
      data_offsets: [data.length + 4, data.length + 8],
    },
  }));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.length));
  await mkdir(folder);
  await writeFile(
    join(folder, "model.safetensors"),
    Buffer.concat([size, header, data, Buffer.alloc(8)]),
  );
  const text_config: unknown = JSON.parse(
    await readFile(join(MODEL, "config.json"), "utf8"),
  );
  await writeFile(
    join(folder, "config.json"),
    JSON.stringify({
      architectures: ["KimiK25ForConditionalGeneration"],
      dtype: "bfloat16",
      ignore_index: -100,
      media_placeholder_token_id: 3,
      model_type: "kimi_k25",
      text_config,
      tie_word_embeddings: false,
      use_unified_vision_chunk: true,
      video_placeholder: "",
      vision_config: {},
    }),
  );
}

t.test(
  "the text model of Kimi-K2.5",
  { skip: skipUnasked("cpu") },
  async (t) => {
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
  },
);
