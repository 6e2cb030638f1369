/** A plan and a checkpoint in a page: loading, running and text generation. */

import { Tokenizer } from "@huggingface/tokenizers";
import { compileDocument } from "../compiler/document/read.ts";
import { checkTensors } from "../engine/checkpoint/weights.ts";
import { Decoder, decoderShape } from "../engine/generation/decoder.ts";
import {
  generateText,
  type GenerateTextOptions,
} from "../engine/generation/generate_text.ts";
import { parseJsonObject } from "../engine/json_file.ts";
import { GENERATE_TEXT_OPTIONS } from "../engine/option_names.ts";
import { stopTokens } from "../engine/checkpoint/stop_tokens.ts";
import { tokenBytes } from "../engine/text/token_bytes.ts";
import { completeText, type HeldText } from "../engine/text/tokenizer.ts";
import type { Device } from "../runtime/device.ts";
import { createSession } from "../runtime/executor.ts";
import type { FileSource } from "../runtime/weights/file_source.ts";
import type { Tracer } from "../runtime/profiler.ts";
import { openSafetensors } from "../runtime/weights/safetensors.ts";
import type { Progress, Session } from "../runtime/session.ts";
import { DataError, PlanError } from "../spec/errors.ts";
import { checkOptions, type OptionNames } from "../spec/options.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { assertLegal, verifyPlanText } from "../spec/verify/mod.ts";
import { type BrowserDevice, openDevice } from "./device.ts";
import { type Folder, readText, webFolder } from "./folder.ts";

/** Options of `openModel`. */
export interface OpenModelOptions {
  /** The text of a plan, as saved by `switchyard plan --out`. */
  readonly plan: string;
  /** The folder of the checkpoint: its address or its files. */
  readonly checkpoint: string | URL | Folder;
  /** For an address: store weights in the browser's storage; see `WebFolderOptions`. Default: false. */
  readonly cache?: boolean;
  /** Compile the plan's model for another mesh, such as `{ ep: 4 }`. Default: run the plan unchanged. */
  readonly mesh?: { readonly [meshAxis: string]: number };
  /** Device of the ranks. Default: auto. */
  readonly device?: BrowserDevice;
  /** Records runs, which makes them slower. */
  readonly tracer?: Tracer;
  readonly onProgress?: (progress: Progress) => void;
}

const OPTIONS: OptionNames<OpenModelOptions> = {
  plan: true,
  checkpoint: true,
  cache: true,
  mesh: true,
  device: true,
  tracer: true,
  onProgress: true,
};

/** A loaded model. */
export interface BrowserModel {
  readonly plan: Plan;
  readonly device: Device;
  readonly session: Session;
  /** Continues a text, greedily by default. Rejects with a MachineError if the device is lost. */
  generate(prompt: string, options?: GenerateTextOptions): Promise<string>;
  /** Releases the device. */
  close(): void;
}

/**
 * Loads the plan of a decoder, and the weights and tokenizer of its checkpoint, onto one device that all ranks share.
 * Errors: PlanError for an illegal plan, DataError for files and unknown options, MachineError for the device.
 */
export async function openModel(
  options: OpenModelOptions,
): Promise<BrowserModel> {
  checkOptions("open a model", options, OPTIONS);
  const { checkpoint, onProgress, tracer, cache = false } = options;
  const folder = typeof checkpoint === "string" || checkpoint instanceof URL
    ? webFolder(checkpoint, { cache })
    : checkpoint;
  const plan = planOf(options);
  const shape = decoderShape(plan);
  if (shape === undefined) {
    throw new DataError(
      "Cannot generate text: the plan is of no decoder. Make one of a checkpoint folder with 'switchyard plan'",
    );
  }
  const [tokenizer, stop, tensors] = await Promise.all([
    openTokenizer(folder),
    readStop(folder),
    openWeights(folder).then(openSafetensors),
  ]);
  // A checkpoint may have tensors that the model does not use.
  checkTensors(plan, tensors, { where: folder.name, unused: [""] });
  const device = await openDevice(plan, options.device);
  const session = await createSession(plan, {
    devices: Array.from({ length: plan.ranks }, () => device),
    tensors,
    ...onProgress ? { onProgress } : {},
    ...tracer ? { tracer } : {},
  }).catch((error) => {
    device.destroy();
    throw error;
  });
  const decoder = new Decoder(session, shape);
  return {
    plan,
    device,
    session,
    async generate(prompt, options = {}) {
      checkOptions("generate text", options, GENERATE_TEXT_OPTIONS);
      session.reset();
      return await generateText({ decoder, tokenizer, stop }, prompt, {
        ...options,
        afterToken: nextTask,
      });
    },
    close: () => session.close(),
  };
}

function planOf({ plan: text, mesh }: OpenModelOptions): Plan {
  const { plan, errors } = verifyPlanText(text);
  const [error] = errors;
  if (plan === undefined || error) throw new PlanError(error!.message);
  if (mesh === undefined) return plan;
  const { compiledFrom } = plan;
  if (compiledFrom === undefined) {
    throw new PlanError(
      "Cannot compile the plan for another mesh: it does not say which model it was compiled from. Save it again with 'switchyard plan'",
    );
  }
  const compiled = compileDocument({
    ...compiledFrom,
    options: { ...compiledFrom["options"] as object, mesh },
  });
  assertLegal(compiled);
  return compiled;
}

async function openTokenizer(folder: Folder) {
  const file = await readJson(folder, "tokenizer.json");
  const made = new Tokenizer(
    file,
    await readJson(folder, "tokenizer_config.json", {}),
  );
  const encode = (text: string, special: boolean) =>
    Promise.resolve(made.encode(text, { add_special_tokens: special }).ids);
  const decode = (ids: readonly number[], skip: boolean) =>
    ids.length === 0
      ? ""
      : made.decode([...ids], { skip_special_tokens: skip });
  return {
    encode: (text: string) => encode(text, true),
    encodeBare: (text: string) => encode(text, false),
    decode: (ids: readonly number[]) => Promise.resolve(decode(ids, true)),
    decodeAll: (ids: readonly number[]) => Promise.resolve(decode(ids, false)),
    bytes: (id: number) => Promise.resolve(tokenBytes(made, file)(id)),
    complete: (held: HeldText, added: readonly number[]) =>
      Promise.resolve(completeText((ids) => decode(ids, true), held, added)),
    close: () => {},
  };
}

async function readStop(folder: Folder): Promise<ReadonlySet<number>> {
  return stopTokens(
    await readJson(folder, "config.json", {}),
    await readJson(folder, "generation_config.json", {}),
  );
}

/** Opens the single weight file of a checkpoint, otherwise the files in its index. */
async function openWeights(folder: Folder): Promise<FileSource[]> {
  const single = await folder.open("model.safetensors");
  if (single) return [single];
  const index = await readJson(folder, "model.safetensors.index.json");
  const names = new Set(Object.values(index["weight_map"] ?? {}) as string[]);
  return await Promise.all([...names].map(async (name) => {
    const source = await folder.open(name);
    if (source) return source;
    throw missing(folder, name);
  }));
}

async function readJson(
  folder: Folder,
  file: string,
  absent?: object,
): Promise<{ readonly [key: string]: unknown }> {
  const text = await readText(folder, file) ??
    (absent && JSON.stringify(absent));
  if (text === undefined) throw missing(folder, file);
  return parseJsonObject(text, file);
}

function missing(folder: Folder, file: string): DataError {
  return new DataError(
    `Cannot load '${folder.name}': '${file}' is missing. Copy it there`,
  );
}

/** Lets the page do other work, such as drawing. */
function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.addEventListener("message", () => {
      port1.close();
      resolve();
    });
    port1.start();
    port2.postMessage(undefined);
  });
}
