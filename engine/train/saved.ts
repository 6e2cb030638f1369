/**
 * A training on disk: a checkpoint for any loader, plus the data for resuming. Each rank writes its own files, with the
 * step in their names; `model.safetensors.index.json` names the valid ones, and is replaced last and atomically.
 */

import { sourceNames } from "../../spec/axis_parts.ts";
import type { Optimizer, TrainedParameters } from "../../compiler/mod.ts";
import { bytesOf, safetensorsHead } from "../../runtime/mod.ts";
import type { StoredDType } from "../../spec/dtype.ts";
import { deepestError, errorText } from "../../spec/document/schema_error.ts";
import { DataError, MachineError } from "../../spec/errors.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { sha256 } from "../digest.ts";
import { COMPANION_FILES, WEIGHT_INDEX } from "../checkpoint/checkpoint.ts";
import type { FileSystem } from "../files.ts";
import { readJsonObject } from "../json_file.ts";
import type { Opened } from "../open.ts";
import type { Natural } from "../../spec/values.ts";
import { trainingErrors } from "../saved_validator.ts";
import {
  parameterPieces,
  type Piece,
  shapeOf,
  statePieces,
  type WrittenTensor,
} from "./parameters.ts";
import type { SavedSettings } from "./settings.ts";

/** Saved data of a training besides its tensors. */
export interface TrainingState {
  /** Completed steps. */
  readonly step: Natural;
  /** Used sequences of the text, over all epochs. */
  readonly position: Natural;
  /** Identity of the tokens of the text. */
  readonly text: string;
  readonly settings: SavedSettings;
}

/** A block of a state in a file. */
export interface SavedSlice {
  readonly file: string;
  /** Its name in the file. */
  readonly tensor: string;
  /** Its first index along each axis of the state. */
  readonly start: readonly Natural[];
  readonly shape: readonly Natural[];
  readonly sha256: string;
}

/** Training metadata of an index. Its schema is generated from this type. */
export interface SavedTraining extends TrainingState {
  /** Version of the format. */
  readonly format: 2;
  /** The hash of each parameter's bytes in the file. */
  readonly sha256: { readonly [tensor: string]: string };
  /** The optimizer state, by logical name. */
  readonly optimizerState: {
    readonly [state: string]: {
      readonly shape: readonly Natural[];
      readonly slices: readonly SavedSlice[];
    };
  };
}

/** Version of the format. */
const FORMAT: SavedTraining["format"] = 2;

/** Training files that an index may name, and those with an interrupted write. */
const OURS = /^(model|optimizer)-\d+-\d+-of-\d+\.safetensors$/;
const UNFINISHED = /^\.(.+)\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Sources of the configuration and the tokenizer of a training. */
export interface Sources {
  /** config.json. */
  readonly config: { readonly [key: string]: unknown };
  /** Folders of the tokenizer and of generation_config.json. */
  readonly tokenizer: string;
  readonly generation: string;
}

/** Rejects a folder with other weights, or with a training that is not resumed. */
export async function checkFolder(
  folder: string,
  files: FileSystem,
): Promise<void> {
  if (await files.stat(folder) === undefined) return;
  const names = await files.list(folder);
  if (names.includes(WEIGHT_INDEX)) {
    throw new DataError(
      `Cannot train into '${folder}': it has a checkpoint already. Resume it (--resume), or give another folder`,
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

/**
 * Locks a folder, which is created if needed, and removes unfinished files of an interrupted save; returns the function
 * that unlocks it. Throws DataError if another training runs there.
 */
export async function lockFolder(
  folder: string,
  files: FileSystem,
): Promise<() => Promise<void>> {
  await files.makeFolder(folder);
  const path = files.join(folder, "training.lock");
  const lock = await files.lock(path);
  if ("release" in lock) {
    try {
      await removeUnfinished(folder, files);
    } catch (error) {
      await lock.release();
      throw error;
    }
    return lock.release;
  }
  throw new DataError(
    `Cannot train into '${folder}': another training does, ${lock.owner}. ${
      lock.gone
        ? `Wait until it ends, or remove '${path}' if it has`
        : "Wait until it ends, or give another folder"
    }`,
  );
}

/** Removes unfinished files of an interrupted save. Others, such as tokens of the text, may be in use. */
async function removeUnfinished(
  folder: string,
  files: FileSystem,
): Promise<void> {
  for (const name of await files.list(folder)) {
    const [, written] = UNFINISHED.exec(name) ?? [];
    if (written === undefined) continue;
    if (written !== WEIGHT_INDEX && !OURS.test(written)) continue;
    await files.remove(files.join(folder, name));
  }
}

/** Creates a folder with the tokenizer and generation_config.json of others. */
export async function prepareTexts(
  folder: string,
  files: FileSystem,
  from: Pick<Sources, "tokenizer" | "generation">,
): Promise<void> {
  await files.makeFolder(folder);
  for (const name of COMPANION_FILES) {
    const path = files.join(
      name.startsWith("generation") ? from.generation : from.tokenizer,
      name,
    );
    if (await files.stat(path) === undefined) continue;
    await writeText(
      files.join(folder, name),
      await files.readText(path),
      files,
    );
  }
}

/** Prepares a folder for saving a training, with the common parts of all its checkpoints. */
export async function prepareFolder(
  folder: string,
  files: FileSystem,
  from: Sources,
  plan: Plan,
): Promise<void> {
  await prepareTexts(folder, files, from);
  const { config } = from;
  const name = TORCH_DTYPES[commonDType(plan)];
  const dtype = { torch_dtype: name, dtype: name };
  const retained = Object.fromEntries(
    Object.entries(dtype).filter(([key]) => key in config),
  );
  await writeText(
    files.join(folder, "config.json"),
    `${JSON.stringify({ ...config, ...retained }, null, 2)}\n`,
    files,
  );
}

/** Names of dtypes in configurations. */
const TORCH_DTYPES: { readonly [dtype: string]: string } = {
  f32: "float32",
  f16: "float16",
  bf16: "bfloat16",
};

/** The storage dtype of most elements of a plan's parameters. */
function commonDType(plan: Plan): StoredDType {
  const counts = new Map<StoredDType, number>();
  for (const weight of plan.weights) {
    const elements = [...weight.shape, sourceNames(plan, weight).length]
      .reduce((n, size) => n * size, 1);
    counts.set(weight.stored, elements + (counts.get(weight.stored) ?? 0));
  }
  const [commonest = "f32"] = [...counts.keys()].sort((a, b) =>
    counts.get(b)! - counts.get(a)!
  );
  return commonest;
}

/** Data to save, and the saving ranks. */
export interface Saving
  extends Pick<Opened, "plan" | "session" | "rank" | "ranks" | "gatherTexts"> {
  readonly optimizer: Optimizer;
  /** The trained parameters, which are written. Default: all. */
  readonly trained?: TrainedParameters | undefined;
}

/** Files written by a rank. */
interface Written {
  readonly model: WrittenFile;
  readonly optimizer: WrittenFile;
}

interface WrittenFile {
  readonly file: string;
  readonly tensors: readonly (WrittenTensor & {
    readonly bytes: number;
    readonly sha256: string;
  })[];
}

/**
 * Saves a training: every rank its part, then rank 0 the index. Until the end, and after an interruption, the folder
 * has its previous contents. All processes must call it, with a shared folder.
 */
export async function saveTraining(
  folder: string,
  files: FileSystem,
  from: Saving,
  state: TrainingState,
): Promise<void> {
  const local: Written[] = [];
  for (const rank of from.ranks) {
    const name = (what: string) =>
      `${what}-${padded(state.step, 8)}-${padded(rank + 1, 5)}-of-${
        padded(from.plan.ranks, 5)
      }.safetensors`;
    const write = async (file: string, pieces: readonly Piece[]) =>
      await writePieces(folder, files, file, pieces);
    local.push({
      model: await write(name("model"), parameterPieces(from, rank)),
      optimizer: await write(
        name("optimizer"),
        statePieces(from, from.optimizer, rank),
      ),
    });
  }
  const texts = await from.gatherTexts(
    JSON.stringify(local),
    "saving a checkpoint",
  );
  if (from.rank !== 0) return;
  const written = texts.flatMap((text) => JSON.parse(text) as Written[]);
  await checkThere(folder, files, written);
  const text = `${JSON.stringify(indexOf(from, written, state), null, 2)}\n`;
  await writeText(files.join(folder, WEIGHT_INDEX), text, files);
  // A failed removal is repeated: otherwise the files stay until the next save, if there is one.
  await removeOthers(folder, files, written)
    .catch(() => removeOthers(folder, files, written));
}

function padded(number: number, digits: number): string {
  return String(number).padStart(digits, "0");
}

/** Writes a file tensor by tensor: host memory contains one piece at a time. */
async function writePieces(
  folder: string,
  files: FileSystem,
  file: string,
  pieces: readonly Piece[],
): Promise<WrittenFile> {
  const named = pieces.flatMap(({ tensors }) => tensors);
  const tensors: WrittenFile["tensors"][number][] = [];
  async function* parts(): AsyncGenerator<Uint8Array, void, undefined> {
    yield safetensorsHead(
      named.map(({ name, dtype, shape }) => [name, { dtype, shape }]),
      { format: "pt" },
    );
    for (const piece of pieces) {
      for (const [i, { data }] of (await piece.read()).entries()) {
        tensors.push({
          ...piece.tensors[i]!,
          bytes: data.byteLength,
          sha256: await sha256(data),
        });
        yield bytesOf(data);
      }
    }
  }
  await files.write(files.join(folder, file), parts());
  return { file, tensors };
}

/** Rejects files that only another host has. */
async function checkThere(
  folder: string,
  files: FileSystem,
  written: readonly Written[],
): Promise<void> {
  for (const { model, optimizer } of written) {
    for (const { file } of [model, optimizer]) {
      const path = files.join(folder, file);
      if (await files.stat(path) !== undefined) continue;
      throw new MachineError(
        `Cannot save the training: '${path}', which another rank wrote, is not on the host of rank 0. Give a folder that all hosts share`,
      );
    }
  }
}

function indexOf(
  { plan }: Saving,
  written: readonly Written[],
  state: TrainingState,
): object {
  const parameters = written.flatMap(({ model: { file, tensors } }) =>
    tensors.map((tensor) => ({ ...tensor, file }))
  );
  const optimizerState: {
    [state: string]: { shape: readonly number[]; slices: SavedSlice[] };
  } = {};
  for (const { optimizer: { file, tensors } } of written) {
    for (const { name, shape, of, sha256 } of tensors) {
      const { state, start } = of!;
      optimizerState[state] ??= { shape: shapeOf(plan, state), slices: [] };
      optimizerState[state].slices.push({
        file,
        tensor: name,
        start,
        shape,
        sha256,
      });
    }
  }
  const training: SavedTraining = {
    format: FORMAT,
    ...state,
    sha256: byName(parameters, ({ sha256 }) => sha256),
    optimizerState,
  };
  return {
    metadata: {
      total_size: parameters.reduce((n, { bytes }) => n + bytes, 0),
      training,
    },
    weight_map: byName(parameters, ({ file }) => file),
  };
}

function byName<T extends { readonly name: string }, V>(
  items: readonly T[],
  value: (item: T) => V,
): { [name: string]: V } {
  return Object.fromEntries(items.map((item) => [item.name, value(item)]));
}

/** Removes files of other steps and of interrupted trainings. */
async function removeOthers(
  folder: string,
  files: FileSystem,
  written: readonly Written[],
): Promise<void> {
  const retained = new Set(
    written.flatMap(({ model, optimizer }) => [model.file, optimizer.file]),
  );
  for (const name of await files.list(folder)) {
    if (retained.has(name) || !OURS.test(name) && !UNFINISHED.test(name)) {
      continue;
    }
    await files.remove(files.join(folder, name));
  }
}

/** Training metadata in a folder. Throws DataError if there is none. */
export async function readTraining(
  folder: string,
  files: FileSystem,
): Promise<SavedTraining> {
  const path = files.join(folder, WEIGHT_INDEX);
  if (await files.stat(path) === undefined) {
    throw new DataError(
      `Cannot resume '${folder}': no training was saved there. Start one without --resume`,
    );
  }
  const index = await readJsonObject(path, files) as {
    readonly metadata?: {
      readonly training?: { readonly format?: unknown };
    };
  };
  const training = index.metadata?.training;
  if (training === undefined) {
    throw new DataError(
      `Cannot resume '${folder}': it is a checkpoint without optimizer state. Start a new training from it, without --resume`,
    );
  }
  if (training.format !== FORMAT) {
    throw new DataError(
      `Cannot resume '${folder}': its format is ${training.format}, and this version reads ${FORMAT}. Use the version that wrote it`,
    );
  }
  const error = deepestError(trainingErrors(training));
  if (error) {
    throw new DataError(
      `Cannot resume '${folder}': in '${path}', the training's ${
        errorText(error)
      }. Copy the file again`,
    );
  }
  return training as SavedTraining;
}

async function writeText(
  path: string,
  text: string,
  files: FileSystem,
): Promise<void> {
  await files.write(path, [new TextEncoder().encode(text)]);
}
