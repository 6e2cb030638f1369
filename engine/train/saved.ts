/**
 * A training on disk: a checkpoint that any loader reads, and beside it what is needed to go on. Files of a step have its
 * number in their names; `model.safetensors.index.json` names those that count, and is replaced last and at once.
 */

import type { HostTensor } from "../../runtime/mod.ts";
import { safetensorsParts } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem } from "../files.ts";
import { readJsonObject } from "../json_file.ts";
import type { Tensors } from "../run.ts";
import { readTensors } from "../tensors.ts";
import type { TrainSettings } from "./settings.ts";

/** What is saved of a training besides its parameters. */
export interface TrainingState {
  /** Steps taken. */
  readonly step: number;
  /** Sequences taken of the text, over all rounds. */
  readonly position: number;
  /** What tells the tokens of the text from others. */
  readonly text: string;
  readonly settings: TrainSettings;
}

/** A training as it is saved, whole tensors wherever they lay. */
export interface SavedTraining extends TrainingState {
  readonly parameters: Tensors;
  /** What the optimizer remembers. */
  readonly remembered: Tensors;
}

const INDEX = "model.safetensors.index.json";

/** Files of a training that an index may name, and those that were never finished. */
const OURS = /^\.?(model|optimizer)-\d+\.safetensors(\.\d+)?$/;
const UNFINISHED = /^\.model\.safetensors\.index\.json\.\d+$/;

/** Files of a checkpoint that are taken over as they are, where they are there. */
const COMPANIONS = [
  ...["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
  ...["generation_config.json", "chat_template.jinja", "chat_template.json"],
];

/** Where the configuration and the tokenizer of a training come from. */
export interface Sources {
  readonly folder: string;
  readonly tokenizer: string;
}

/** Refuse a folder that has other weights, or a training that is not gone on with. */
export async function checkFolder(
  folder: string,
  files: FileSystem,
): Promise<void> {
  if (await files.stat(folder) === undefined) return;
  const names = await files.list(folder);
  if (names.includes(INDEX)) {
    throw new DataError(
      `Cannot train into '${folder}': it has a checkpoint already. Go on with it (--resume), or give another folder`,
    );
  }
  const weights = names.find((name) =>
    name.endsWith(".safetensors") && !OURS.test(name)
  );
  if (weights !== undefined) {
    throw new DataError(
      `Cannot train into '${folder}': it has the weights '${weights}'. Give another folder`,
    );
  }
}

/** Make a folder in which a training can be saved, with what is the same in all its checkpoints. */
export async function prepareFolder(
  folder: string,
  files: FileSystem,
  from: Sources,
): Promise<void> {
  await files.makeFolder(folder);
  for (const name of COMPANIONS) {
    const path = files.join(
      name.startsWith("generation") ? from.folder : from.tokenizer,
      name,
    );
    if (await files.stat(path) === undefined) continue;
    await writeText(
      files.join(folder, name),
      await files.readText(path),
      files,
    );
  }
  const config = await readJsonObject(
    files.join(from.folder, "config.json"),
    files,
  );
  // Parameters are saved as they are computed with.
  const dtype = { torch_dtype: "float32", dtype: "float32" };
  const kept = Object.fromEntries(
    Object.entries(dtype).filter(([key]) => key in config),
  );
  await writeText(
    files.join(folder, "config.json"),
    `${JSON.stringify({ ...config, ...kept }, null, 2)}\n`,
    files,
  );
}

/** Save a training. Until it is over, and if it is broken off, the folder has what it had before. */
export async function saveTraining(
  folder: string,
  files: FileSystem,
  { parameters, remembered, ...state }: SavedTraining,
): Promise<void> {
  const number = String(state.step).padStart(8, "0");
  const model = `model-${number}.safetensors`;
  const optimizer = `optimizer-${number}.safetensors`;
  for (
    const [name, tensors] of [[model, parameters], [
      optimizer,
      remembered,
    ]] as const
  ) {
    const parts = safetensorsParts(tensors, { format: "pt" });
    await files.write(files.join(folder, name), parts);
  }
  const all = Object.values(parameters);
  const index = {
    metadata: {
      total_size: all.reduce((n, { data }) => n + data.byteLength, 0),
      training: {
        ...{ format: 1, optimizer, ...state },
        sha256: await hashes({ ...parameters, ...remembered }),
      },
    },
    weight_map: Object.fromEntries(
      Object.keys(parameters).map((name) => [name, model]),
    ),
  };
  const text = `${JSON.stringify(index, null, 2)}\n`;
  await writeText(files.join(folder, INDEX), text, files);
  for (const name of await files.list(folder)) {
    if (name === model || name === optimizer) continue;
    if (OURS.test(name) || UNFINISHED.test(name)) {
      await files.remove(files.join(folder, name));
    }
  }
}

/** What a folder says of the training that was saved in it. */
export async function readTraining(
  folder: string,
  files: FileSystem,
): Promise<TrainingState & { readonly optimizer: string }> {
  return (await readIndex(folder, files)).training;
}

/** A training as it was saved. Throws DataError where a tensor is not what was written. */
export async function loadTraining(
  folder: string,
  files: FileSystem,
): Promise<SavedTraining> {
  const { training, shards } = await readIndex(folder, files);
  const { optimizer, sha256: wanted, ...state } = training;
  const read = async (name: string) =>
    await readTensors(files.join(folder, name), files);
  const parameters: { [name: string]: HostTensor } = {};
  for (const shard of shards) Object.assign(parameters, await read(shard));
  const remembered = await read(optimizer);
  const found = await hashes({ ...parameters, ...remembered });
  for (const name of new Set([...Object.keys(wanted), ...Object.keys(found)])) {
    if (found[name] === wanted[name]) continue;
    throw new DataError(
      `Cannot go on with '${folder}': tensor '${name}' is not what was saved. Copy the folder again, or start from an earlier one`,
    );
  }
  return { ...state, parameters, remembered };
}

interface Training extends TrainingState {
  readonly format: number;
  readonly optimizer: string;
  readonly sha256: { readonly [tensor: string]: string };
}

async function readIndex(
  folder: string,
  files: FileSystem,
): Promise<{ readonly training: Training; readonly shards: Set<string> }> {
  const path = files.join(folder, INDEX);
  if (await files.stat(path) === undefined) {
    throw new DataError(
      `Cannot go on with '${folder}': no training was saved there. Start one without --resume`,
    );
  }
  const index = await readJsonObject(path, files) as {
    readonly metadata?: { readonly training?: Training };
    readonly weight_map?: { readonly [tensor: string]: string };
  };
  const training = index.metadata?.training;
  if (training === undefined || index.weight_map === undefined) {
    throw new DataError(
      `Cannot go on with '${folder}': it is a checkpoint without what an optimizer remembers. Start a new training from it, without --resume`,
    );
  }
  if (training.format !== 1) {
    throw new DataError(
      `Cannot go on with '${folder}': its format is ${training.format}, and this version reads 1. Use the version that wrote it`,
    );
  }
  return { training, shards: new Set(Object.values(index.weight_map)) };
}

async function hashes(
  tensors: Tensors,
): Promise<{ [tensor: string]: string }> {
  const found: { [tensor: string]: string } = {};
  for (const [name, { data }] of Object.entries(tensors)) {
    found[name] = await sha256(data);
  }
  return found;
}

async function writeText(
  path: string,
  text: string,
  files: FileSystem,
): Promise<void> {
  await files.write(path, [new TextEncoder().encode(text)]);
}
