/** Log-probabilities of sampled tokens, by the sampling decoder and by the forward pass of a training step. */

import {
  adamw,
  logProbabilities,
  mean,
  mul,
  STEP_INPUTS,
  VALIDATE,
} from "../../compiler/mod.ts";
import {
  listWeightFiles,
  openConfiguration,
} from "../../engine/checkpoint/checkpoint.ts";
import {
  type AdapterChoice,
  Decoder,
  decoderShape,
  generate,
  loadTarget,
  type Opened,
  randomNumbers,
  type Tensors,
} from "../../engine/mod.ts";
import type { PublishedModel } from "../../models/mod.ts";
import { adaptedModel, trainedAdapters } from "../../engine/lora/mod.ts";
import {
  compileTarget,
  type Loadable,
  type OpenOptions,
  openPlan,
} from "../../engine/open.ts";
import { packPrompts } from "../../engine/generation/packing.ts";
import { withTensors } from "../../engine/checkpoint/tensors.ts";
import { initialWeights } from "../../engine/train/initial.ts";
import { parameterPieces } from "../../engine/train/parameters.ts";
import { compileStep } from "../../engine/train/plan.ts";
import {
  storedIn,
  storedTensors,
  storedWeights,
  writeMasters,
} from "../../engine/train/stored.ts";
import {
  type FileTensor,
  type HostTensor,
  tensorsInMemory,
} from "../../runtime/mod.ts";
import { checkpointFolder, files, meshOf } from "./checkpoints.ts";

/** Prompts share a prefix of two pages and exceed the slots. */
const [PROMPTS, SLOTS, NEW_TOKENS, STEPS] = [6, 4, 6, 10];

const optimizer = adamw({ betas: [0.9, 0.95] });

/** LoRA adapters of checkpoints whose quantized weights are constant. */
const LORA = { rank: 4, alpha: 8, targets: ["attention", "experts"] };

/** Whether a checkpoint is quantized. If so, only adapters are trained. */
function isQuantized(name: string): boolean {
  return /-(fp8|int4|mxfp4)$/.test(name);
}

/** Model to train and sample: with adapters if quantized. */
function trainedModel(name: string, published: PublishedModel): PublishedModel {
  return isQuantized(name)
    ? adaptedModel(published, trainedAdapters(LORA))
    : published;
}

/** Sampled tokens of a prompt and their log-probabilities. */
export interface Sampled {
  readonly prompt: readonly number[];
  readonly tokens: readonly number[];
  readonly logprobs: readonly number[];
}

type Weights = { readonly [name: string]: FileTensor };

/** Mesh and devices of a session. */
interface Place {
  readonly mesh: string;
  readonly adapter: AdapterChoice;
}

/** Mesh and devices of a training. `folder`: its weights. Default: the recorded checkpoint. */
interface TrainingPlace extends Place {
  readonly folder?: string;
}

/** Opens a training session of a checkpoint. */
export async function openTrained(
  name: string,
  { mesh, adapter, folder = checkpointFolder(name) }: TrainingPlace,
): Promise<Opened> {
  const { published } = await openConfiguration(folder, files, {});
  const trained = isQuantized(name) ? "adapters" : "all";
  let initial: Tensors = {};
  const model = trainedModel(name, published).build({
    maxTokens: 128,
    maxSequences: PROMPTS,
    maxContext: 32,
    training: {
      auxiliary: 0.01,
      objective: (_, { logits, labels }) => {
        const logprobs = logProbabilities(logits, labels, { over: "vocab" });
        return { loss: mul(mean(logprobs, "token"), -1), logprobs };
      },
    },
  });
  const step = {
    model,
    loss: "loss",
    weights: await storedIn(folder, files, trained),
    settings: { optimizer },
    trained,
    validate: ["logprobs"],
  } as const;
  const opened = await openOn(name, {
    plan: (options) => compileStep(step, options),
    tensors: async (plan) => {
      initial = trained === "all"
        ? (await storedWeights(folder, files))!
        : initialWeights(plan, { seed: 1, deviation: 0, trained });
      return tensorsInMemory(storedTensors(plan, initial), folder);
    },
    where: folder,
    unused: published.unused,
  }, { adapter, mesh: meshOf(mesh) });
  writeMasters(opened, optimizer, initial);
  return opened;
}

/** Opens a plan with given tensors and, if quantized, the checkpoint's weights. */
async function openOn(
  name: string,
  loadable: Loadable,
  options: OpenOptions,
): Promise<Opened> {
  const paths = isQuantized(name)
    ? await listWeightFiles(loadable.where!, files)
    : [];
  return await withTensors(paths, files, (constants) =>
    openPlan({
      ...loadable,
      tensors: async (plan) =>
        new Map([...constants, ...await loadable.tensors(plan)]),
    }, options));
}

/** Runs training steps. Default: 10. */
export async function takeSteps(
  { plan, session }: Opened,
  steps = STEPS,
): Promise<void> {
  for (let n = 1; n <= steps; n++) {
    await session.run("main", {
      ...labelled(promptsOf(plan.axes["vocab"]!.size, n)),
      [STEP_INPUTS.rate]: number(1e-3),
      [STEP_INPUTS.step]: number(n),
    }, { outputs: [] });
  }
}

/** Returns the current parameters of a training, or its adapters. */
export async function weightsOf(
  name: string,
  opened: Opened,
): Promise<Weights> {
  const tensors: { [name: string]: FileTensor } = {};
  const trained = isQuantized(name) ? "adapters" : "all";
  for (const rank of opened.ranks) {
    for (const piece of parameterPieces({ ...opened, trained }, rank)) {
      const read = await piece.read();
      piece.tensors.forEach((tensor, i) => tensors[tensor.name] = read[i]!);
    }
  }
  return tensors;
}

/** Samples at temperature 1 with continuous batching and a paged KV cache with prefix sharing. */
export async function sampleTokens(
  name: string,
  tensors: Weights,
  { mesh, adapter }: Place,
): Promise<Sampled[]> {
  const folder = checkpointFolder(name);
  const target = await loadTarget(folder, files);
  if (target.kind !== "checkpoint") throw new Error(`${name}: no checkpoint`);
  const stored = await storedIn(folder, files, "adapters");
  const { checkpoint } = target;
  const published = trainedModel(name, checkpoint.published);
  const adapted = { ...target, checkpoint: { ...checkpoint, published } };
  const opened = await openOn(name, {
    plan: (options) => compileTarget(adapted, stored, options),
    tensors: () => Promise.resolve(tensorsInMemory(tensors, folder)),
    where: folder,
    unused: target.checkpoint.published.unused,
  }, {
    adapter,
    mesh: meshOf(mesh),
    next: { normalizer: true },
    bounds: { maxTokens: 16, maxSequences: SLOTS, maxContext: 32 },
    pages: { count: 40, size: 4 },
  });
  try {
    const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
    const { sequences } = await generate(
      decoder,
      promptsOf(decoder.shape.vocabulary, 0),
      {
        temperature: 1,
        seed: 7,
        logprobs: 0,
        maxNewTokens: NEW_TOKENS,
        stop: new Set(),
      },
    );
    return sequences.map(({ prompt, tokens, logprobs }) => ({
      prompt,
      tokens,
      logprobs: logprobs!.map(({ logprob }) => logprob),
    }));
  } finally {
    await opened.close();
  }
}

/**
 * Returns the largest absolute difference of log-probabilities between the forward pass of a training and the decoder.
 */
export async function largestRatio(
  { session }: Opened,
  sampled: readonly Sampled[],
): Promise<number> {
  const inputs = labelled(
    sampled.map(({ prompt, tokens }) => [...prompt, ...tokens]),
  );
  const { logprobs } = await session.run(VALIDATE, inputs);
  let [largest, row] = [0, 0];
  for (const { prompt, tokens, logprobs: found } of sampled) {
    found.forEach((logprob, i) => {
      const at = row + prompt.length - 1 + i;
      largest = Math.max(largest, Math.abs(logprobs!.data[at]! - logprob));
    });
    row += prompt.length + tokens.length;
  }
  return largest;
}

/** Returns prompts of 9 to 14 tokens with a common prefix of eight tokens. */
function promptsOf(vocabulary: number, stream: number): number[][] {
  const random = randomNumbers(3, stream);
  const draw = () => Math.floor(random() * vocabulary);
  const prefix = Array.from({ length: 8 }, draw);
  return Array.from(
    { length: PROMPTS },
    (_, i) => [...prefix, ...Array.from({ length: i + 1 }, draw)],
  );
}

/** Packs sequences as training inputs; labels are the next tokens. */
function labelled(
  sequences: readonly (readonly number[])[],
): { [name: string]: HostTensor } {
  const { ids, sequence, position } = packPrompts(sequences);
  const labels = sequences.flatMap((tokens) => [...tokens.slice(1), -100]);
  return {
    ids: integers(ids),
    sequence: integers(sequence),
    position: integers(position),
    labels: integers(Int32Array.from(labels)),
  };
}

function integers(data: Int32Array): HostTensor {
  return { dtype: "i32", shape: [data.length], data };
}

function number(value: number): HostTensor {
  return { dtype: "f32", shape: [], data: Float32Array.of(value) };
}
