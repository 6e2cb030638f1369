// Drafts by layers for multi-token prediction: the layer computes its published formula, and drafts do not change the
// tokens of `generate`.
// needs: cpu
// rotates with: engine/generation/speculation/, engine/generation/predictor.ts

import { copyFile } from "node:fs/promises";
import path from "node:path";
import t from "tap";
import {
  Decoder,
  decoderShape,
  loadTarget,
  openTarget,
  predictingDrafter,
  predictorCompanion,
  quantizeCheckpoint,
  readTensors,
} from "../engine/mod.ts";
import { readGguf } from "../engine/gguf/header.ts";
import { integers, packTokens } from "../engine/generation/packing.ts";
import type { Program } from "../spec/plan/plan.ts";
import {
  checkpointFolder,
  files,
  meshOf,
  relativeError,
} from "./helpers/checkpoints.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import {
  DRAFT_PROMPTS,
  draftsChangeNoToken,
  FREE_DRAFTS,
  type Tokens,
} from "./helpers/drafts.ts";
import {
  layerAlone,
  predictorCheckpoint,
  PREDICTORS,
} from "./helpers/predictor_checkpoint.ts";
import { isInTurn, repeatWith } from "./helpers/seed.ts";
import { startServerWith } from "./helpers/serve.ts";
import { metricOf } from "./helpers/serve_requests.ts";

const NAMES = Object.keys(PREDICTORS);
const WAYS = { greedy: {}, seeded: { temperature: 0.2, topK: 30, seed: 3 } };

async function open(folder: string, mesh: string, { predicts = true } = {}) {
  const target = await loadTarget(folder, files);
  if (target.kind !== "checkpoint") throw new Error("no checkpoint");
  const opened = await openTarget(target, files, {
    mesh: meshOf(mesh),
    adapter: "cpu",
    pages: { count: 60, size: 4 },
    next: { candidates: 30, perSequence: 4, hidden: true },
    bounds: { maxTokens: 24, maxSequences: 3, maxContext: 96 },
    companions: predicts ? [predictorCompanion(target, files)] : [],
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const drafter = () => predictingDrafter(opened.companions[0]!, decoder);
  return { ...opened, decoder, drafter };
}

const HIDDEN = "hidden";

for (const [i, name] of NAMES.entries()) {
  t.test(`${name}: the layer computes its formula`, async (t) => {
    if (!isInTurn(i, 4)) {
      return t.comment(`Not run in this rotation. ${repeatWith()}`);
    }
    const folder = await predictorCheckpoint(name, temporaryFolder(t));
    const ids = [7, 19, 150, 3, 88, 7, 61, 20];
    const { decoder, companions: [companion], close } = await open(
      folder,
      "ep=2",
    );
    const packed = packTokens([{ slot: 0, first: 0, ids }]);
    let states = new Float32Array();
    const onHidden = (rows: Float32Array) => void (states = rows.slice());
    await decoder.next(packed, [ids.length - 1], { onHidden });
    const embed = states.length / ids.length;
    const before = new Float32Array(states.length);
    before.set(states.subarray(0, -embed), embed);
    const { plan, session } = companion!;
    const [{ name: program, inputs }] = plan.programs as [Program];
    const found = await session.run(program, {
      ids: integers(packed.ids),
      sequence: integers(packed.sequence),
      position: integers(packed.position),
      [HIDDEN]: { dtype: "f32", shape: [ids.length, embed], data: before },
      rows: integers(Int32Array.of(ids.length - 1)),
      ...Object.fromEntries(
        Object.entries(decoder.pages!.tensors())
          .filter(([name]) => name in inputs),
      ),
    }, { outputs: [HIDDEN, "candidates.ids", "candidates.logits"] });
    await close();
    const alone = await open(
      await layerAlone(name, {
        ids,
        hidden: ids.map((_, i) => before.subarray(i * embed, (i + 1) * embed)),
        tensors: await readTensors(`${folder}/model.safetensors`, files),
        folder: temporaryFolder(t),
      }),
      "ep=1",
      { predicts: false },
    );
    const rows = packTokens([{ slot: 0, first: 0, ids: [...ids.keys()] }]);
    const [last] = await alone.decoder.next(rows, [ids.length - 1], {
      onHidden,
    });
    await alone.close();
    const error = relativeError(
      found[HIDDEN]!.data,
      states.subarray(-embed),
    );
    t.ok(error < 1e-5, `relative error ${error}`);
    t.equal(found["candidates.ids"]!.data[0], last!.ids![0]);
    t.ok(
      Math.abs(found["candidates.logits"]!.data[0]! - last!.logits[0]!) < 1e-4,
    );
  });
}

/** llama.cpp's names of the layer's tensors outside of its block. */
const GGUF_NAMES = ["eh_proj", "enorm", "hnorm", "shared_head_norm"]
  .map((name) => `nextn.${name}.weight`);

/** Checkpoints that GGUF files cannot represent. */
const UNSUPPORTED = ["deepseekv3-16e", "longcatflash-12e"];

for (const [at, name] of NAMES.entries()) {
  t.test(`${name}: a GGUF file drafts with the layer`, async (t) => {
    if (!isInTurn(at + 1, 4)) {
      return t.comment(`Not run in this rotation. ${repeatWith()}`);
    }
    const folder = await predictorCheckpoint(name, temporaryFolder(t));
    const out = path.join(folder, "model.gguf");
    const written = quantizeCheckpoint(folder, files, {
      to: "q8_0",
      out,
      rules: [{ pattern: "*", type: "F32" }],
    });
    if (UNSUPPORTED.includes(name)) {
      return await t.rejects(written, /^Cannot write a GGUF file/);
    }
    await written;
    const file = await files.open(out);
    const { keys, tensors } = await readGguf(out, file);
    await file.close();
    const number = (of: string) =>
      Number(keys[`${String(keys["general.architecture"])}.${of}`]);
    const last = `blk.${number("block_count") - 1}.`;
    t.equal(number("nextn_predict_layers"), 1);
    const ofLast = tensors.filter(({ name }) => name.startsWith(last))
      .map(({ name }) => name.slice(last.length));
    for (
      const name of [...GGUF_NAMES, "attn_norm.weight", "ffn_gate_exps.weight"]
    ) {
      t.ok(ofLast.includes(name), `${last}${name}`);
    }
    const { decoder, drafter, close } = await open(out, "ep=2");
    const title = "greedy on ep=2";
    await draftsChangeNoToken(t, decoder, { title, options: {}, drafter });
    await close();
  });

  t.test(`${name}: drafts change no token on any mesh`, async (t) => {
    const folder = await predictorCheckpoint(name, temporaryFolder(t));
    const plain: { [way: string]: Tokens } = {};
    for (const [i, mesh] of ["ep=1", "tp=2,ep=2", "ep=4"].entries()) {
      if (mesh !== "ep=1" && !isInTurn(at + i, 2)) continue;
      const { decoder, drafter, close } = await open(folder, mesh);
      for (const way of ["greedy", "seeded"] as const) {
        plain[way] = await draftsChangeNoToken(t, decoder, {
          title: `${way} on ${mesh}`,
          options: WAYS[way],
          drafter,
          plain: plain[way],
        });
      }
      await close();
    }
  });
}

t.test("--draft mtp in generate and serve, and checkpoints without such a layer", async (t) => {
  const folder = await predictorCheckpoint(
    NAMES[0]!,
    temporaryFolder(t),
  );
  const prompt = DRAFT_PROMPTS[1]!;
  const run = async (model: string, ...args: string[]) => {
    const { code, out, err } = await switchyard([
      ...["generate", model, "--adapter", "cpu", "--json", "--stats"],
      ...["--tokens", prompt.join(), "-n", "30", ...args],
    ]);
    return { code, out, err };
  };
  const sequences = ({ out }: { readonly out: string }): unknown =>
    (JSON.parse(out) as { readonly sequences: unknown }).sequences;
  const draft = ["--speculate", "3", "--draft", "mtp"];
  const plain = await run(folder);
  t.strictSame(sequences(await run(folder, ...draft)), sequences(plain));
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    await copyFile(
      path.join(checkpointFolder("demo-lm"), name),
      path.join(folder, name),
    );
  }
  const served = async (...args: string[]) => {
    const server = await startServerWith(FREE_DRAFTS, [folder, ...args]);
    t.teardown(() => server.stop());
    const { choices } = await server.client.completions.create({
      model: NAMES[0]!,
      prompt: [...prompt],
      max_tokens: 30,
      temperature: 0,
      logprobs: 0,
    });
    return {
      choices,
      drafted: await metricOf(server, "switchyard_drafted_tokens"),
    };
  };
  const drafting = await served(...draft);
  t.strictSame(drafting.choices, (await served()).choices);
  t.ok(drafting.drafted > 0, `${drafting.drafted} tokens are drafted`);
  const failed = await run(checkpointFolder(NAMES[0]!), ...draft);
  t.match([failed.code, failed.err], [
    1,
    "Cannot draft with multi-token prediction: the checkpoint has no tensor 'model.layers.3.enorm.weight'. Draft by lookup or with another checkpoint",
  ]);
  for (
    const [name, why] of [
      ["mixtral-8e", "the family declares no layer for it"],
      [
        "minimaxm2-16e",
        "published checkpoints of MiniMax-M2 do not have the layers that their config.json declares",
      ],
    ] as const
  ) {
    const none = await run(checkpointFolder(name), ...draft);
    t.match([none.code, none.err], [
      1,
      `Cannot draft with multi-token prediction: ${why}. Draft by lookup or with another checkpoint`,
    ]);
  }
});
