/** Recorded references of published implementations, on every mesh, alone and in a batch: the right values, and the same bits. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import t, { type Test } from "tap";
import {
  type Decoder,
  generate,
  runOpened,
  type Tensors,
  writeSafetensors,
} from "../../engine/mod.ts";
import {
  loadCheckpoint,
  type Loaded,
  padBatch,
  readReference,
  relativeError,
} from "./checkpoints.ts";
import { skipUnasked, skipWithoutGpu } from "./needs.ts";

const TOLERANCE = 1e-4;

/** Recordings of a prompt that outputs of the same names are held against. */
const OUTPUT = /\.(logits|router_logits|topk_idx)$/;

/** Both kinds of device; each gives its own bits. */
const DEVICES = [
  { title: "on the CPU", adapter: "cpu", skip: skipUnasked("cpu") },
  { title: "on a GPU", adapter: [0], skip: skipWithoutGpu },
] as const;

interface Recorded {
  readonly prompts: number[][];
  /** Greedy tokens, as far as no tie decides them. */
  readonly generated: number[][];
  readonly reference: Tensors;
}

async function readRecorded(name: string): Promise<Recorded> {
  const reference = await readReference(name);
  const prompts: number[][] = [];
  const generated: number[][] = [];
  for (let i = 0; `p${i}.input_ids` in reference; i++) {
    prompts.push([...reference[`p${i}.input_ids`]!.data]);
    generated.push([...reference[`p${i}.generated`]!.data]);
  }
  if (name === "demo-lm") {
    const sure = JSON.parse(readFileSync(
      new URL(
        "../references/demo-lm/reference_continuations.json",
        import.meta.url,
      ),
      "utf8",
    )) as { first_step_with_margin_below_0_005: number }[];
    sure.forEach((entry, i) => {
      generated[i]!.length = entry.first_step_with_margin_below_0_005;
    });
  }
  return { prompts, generated, reference };
}

async function greedyTokens(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
  count: number,
): Promise<(readonly number[])[]> {
  const { sequences } = await generate(decoder, prompts, {
    maxNewTokens: count,
    stop: new Set(),
  });
  return sequences.map(({ tokens }) => tokens);
}

function digest(outputs: Tensors): string {
  return createHash("sha256").update(writeSafetensors(outputs)).digest("hex");
}

/** Row `row` of a padded output, without its padding. */
function rowOf(outputs: Tensors, name: string, row: number, length: number) {
  const { shape, data } = outputs[name]!;
  const [, columns = 0, width = 0] = shape;
  const from = row * columns * width;
  return data.slice(from, from + length * width);
}

/** Where two lists of numbers differ first. To compare them by tap takes longer than to run the model. */
function firstDifference(
  found: ArrayLike<number>,
  wanted: ArrayLike<number>,
): number | undefined {
  for (let i = 0; i < Math.max(found.length, wanted.length); i++) {
    if (!Object.is(found[i], wanted[i])) return i;
  }
  return undefined;
}

async function runFresh(
  loaded: Loaded,
  prompts: readonly (readonly number[])[],
): Promise<Tensors> {
  loaded.session.reset();
  return await runOpened(loaded, padBatch(prompts));
}

/** Hold checkpoints against what was recorded of them, on every mesh and kind of device; on four ranks also on devices of their own. */
export function testReferences(
  names: readonly string[],
  meshes: readonly string[],
): void {
  for (const name of names) {
    for (const device of DEVICES) testReference(name, meshes, device);
  }
}

function testReference(
  name: string,
  meshes: readonly string[],
  { title, adapter, skip }: (typeof DEVICES)[number],
): void {
  t.test(`${name} ${title}, on every mesh`, { skip }, async (t) => {
    const { prompts, generated, reference } = await readRecorded(name);
    const count = Math.max(...generated.map(({ length }) => length));
    let bits: string | undefined;
    let later: string | undefined;
    for (
      const [mesh, sharing] of [
        ...meshes.map((mesh) => [mesh, "shared"] as const),
        ["ep=4", "separate"] as const,
      ]
    ) {
      await t.test(`${mesh}, ${sharing} devices`, async (t) => {
        const loaded = await loadCheckpoint(name, {
          ...{ mesh, sharing, adapter },
        });
        try {
          const batch = await runFresh(loaded, prompts);
          const found = digest(batch);
          bits ??= found;
          t.equal(found, bits, "the bits of the first mesh");
          t.equal(digest(await runFresh(loaded, prompts)), bits, "run to run");
          for (const [i, prompt] of prompts.entries()) {
            compare(t, batch, { reference, i, length: prompt.length });
            const alone = await runFresh(loaded, [prompt]);
            for (const output of Object.keys(batch)) {
              t.equal(
                firstDifference(
                  rowOf(batch, output, i, prompt.length),
                  alone[output]!.data,
                ),
                undefined,
                `${output} of prompt ${i} alone and in the batch`,
              );
            }
          }
          if ("p0.generated_logits" in reference) {
            const whole = await runFresh(
              loaded,
              prompts.map((prompt, i) => [
                ...prompt,
                ...generated[i]!.slice(0, -1),
              ]),
            );
            later ??= digest(whole);
            t.equal(digest(whole), later, "the bits of what follows");
            for (const [i, { length }] of prompts.entries()) {
              compareLater(t, whole, { reference, i, length });
            }
          }
          loaded.session.reset();
          const together = await greedyTokens(loaded.decoder, prompts, count);
          for (const [i, wanted] of generated.entries()) {
            t.strictSame(
              together[i]!.slice(0, wanted.length),
              wanted,
              `tokens of prompt ${i} in the batch`,
            );
          }
          // On a GPU, where a step takes long, every prompt alone on an uneven mesh, the first on the others.
          const uneven = loaded.decoder.experts % 3 === 0 ? "ep=4" : "ep=3";
          const single = adapter === "cpu" || mesh === uneven
            ? prompts
            : prompts.slice(0, 1);
          for (const [i, prompt] of single.entries()) {
            loaded.session.reset();
            const [alone] = await greedyTokens(
              loaded.decoder,
              [prompt],
              count,
            );
            t.strictSame(alone, together[i], `tokens of prompt ${i} alone`);
          }
          checkPredictions(t, loaded);
        } finally {
          await loaded.close();
        }
      });
    }
  });
}

function compare(
  t: Test,
  outputs: Tensors,
  part: { reference: Tensors; i: number; length: number },
): void {
  const { reference, i, length } = part;
  const recordings = Object.keys(reference).filter((name) =>
    name.startsWith(`p${i}.`) && OUTPUT.test(name)
  );
  for (const name of recordings) {
    const output = name.slice(`p${i}.`.length);
    const recorded = reference[name]!;
    if (outputs[output] === undefined) {
      t.fail(`${output} is an output`);
      continue;
    }
    const row = rowOf(outputs, output, i, length);
    if (output.endsWith("topk_idx")) {
      t.strictSame([...row], [...recorded.data], `${output} of prompt ${i}`);
    } else {
      const error = relativeError(row, recorded.data);
      t.ok(error < TOLERANCE, `${output} of prompt ${i}: ${error}`);
    }
  }
  const { shape } = outputs["logits"]!;
  const last = rowOf(outputs, "logits", i, length).slice(-shape[2]!);
  const ids = reference[`p${i}.generated_top5_ids`]?.data.slice(0, 5);
  const best = reference[`p${i}.generated_top5_logits`]?.data.slice(0, 5);
  if (ids !== undefined && best !== undefined) {
    const found = Float32Array.from(ids, (id) => last[id]!);
    const error = relativeError(found, best);
    t.ok(error < TOLERANCE, `best next logits of prompt ${i}: ${error}`);
  }
  t.ok(ids ?? recordings.length > 0, `logits of prompt ${i} were recorded`);
}

/** The logits that each recorded token was chosen by: those from the prompt's last token on. */
function compareLater(
  t: Test,
  outputs: Tensors,
  part: { reference: Tensors; i: number; length: number },
): void {
  const { reference, i, length } = part;
  const recorded = reference[`p${i}.generated_logits`]!;
  const [count = 0, width = 0] = recorded.shape;
  const from = length - 1;
  const rows = rowOf(outputs, "logits", i, from + count).slice(from * width);
  const error = relativeError(rows, recorded.data);
  t.ok(error < TOLERANCE, `logits of what follows prompt ${i}: ${error}`);
}

function checkPredictions(t: Test, { session }: Loaded): void {
  for (const { rank, ...figures } of session.statistics().ranks) {
    const { peakBytes, stagingBytes, sentBytes } = figures;
    for (
      const [what, { predicted, actual }] of Object.entries({
        ...{ peakBytes, stagingBytes },
        ...sentBytes,
      })
    ) t.equal(actual, predicted, `${what} of rank ${rank}`);
  }
}
