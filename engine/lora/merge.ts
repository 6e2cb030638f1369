/** Merges adapters into the weights of a checkpoint. */

import {
  adapterNames,
  fusedModules,
  paramFacts,
  trace,
} from "../../compiler/mod.ts";
import type { PublishedModel } from "../../models/mod.ts";
import {
  bytesOf,
  type HostTensor,
  narrow,
  readTensor,
  safetensorsHead,
  type TensorDirectory,
  type TensorEntry,
} from "../../runtime/mod.ts";
import { isHalf, type StoredDType } from "../../spec/dtype.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import {
  COMPANION_FILES,
  openCheckpoint,
  QUANTIZATION_FILE,
  WEIGHT_INDEX,
} from "../checkpoint/checkpoint.ts";
import type { FileSystem } from "../files.ts";
import { checkNew, removingOnFailure } from "../new_folder.ts";
import { isGguf } from "../gguf/folder.ts";
import { withTensors } from "../checkpoint/tensors.ts";
import { adaptersOf, type LoraFolder, readLora } from "./folder.ts";
import { adaptedModel, recorded } from "./targets.ts";

/** Options of `mergeLora`. */
export interface MergeOptions {
  /** The folder of the adapters. */
  readonly lora: string;
  /** The folder to write: new, or without files. If writing fails, no file remains. */
  readonly out: string;
  /** Called with the written bytes, and with those of all tensors. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** Dtypes of weights that can be merged. */
const MERGED: { readonly [dtype: string]: StoredDType } = {
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
};

/**
 * Writes a checkpoint whose matrices are `W + scale · B A`, computed in f64 and rounded to the dtype of W. Other files
 * and tensors are copied. One tensor is in memory at a time. Returns the number of merged matrices. Throws DataError for
 * adapters of another model, and for matrices that are quantized.
 */
export async function mergeLora(
  folder: string,
  files: FileSystem,
  { lora, out, onProgress }: MergeOptions,
): Promise<number> {
  const { weightFiles, published } = await openCheckpoint(folder, files);
  const adapters = await readLora(lora, files);
  await checkNew(out, files, "folder");
  if (weightFiles.some(isGguf)) {
    throw new DataError(
      `Cannot merge adapters into '${folder}': it is a GGUF file. Give a checkpoint folder`,
    );
  }
  const fused = fusedIn(published, adapters);
  const unused = new Set(adapters.modules);
  await removingOnFailure(files, async (write) => {
    await withTensors([...weightFiles, adapters.path], files, async (all) => {
      const stored = [...all.values()].filter(({ of }) => of === undefined);
      const total = stored.reduce((n, { bytes }) => n + bytes, 0);
      for (const { name, dtype, of } of all.values()) {
        const module = fused.get(name)?.module ?? name.replace(/\.weight$/, "");
        if (!unused.delete(module) || of === undefined && MERGED[dtype]) {
          continue;
        }
        throw new DataError(
          `Cannot merge adapters into '${folder}': tensor '${shown(name)}' is ${
            of ? "quantized" : dtype
          }. Give a checkpoint in f32, bf16 or f16`,
        );
      }
      const [module] = unused;
      if (module !== undefined) {
        throw new DataError(
          `Cannot merge the adapters of '${lora}': the checkpoint has no matrix '${
            shown(module)
          }'. Give those of this checkpoint`,
        );
      }
      let done = 0;
      for (const path of weightFiles) {
        const name = path.slice(files.join(folder, "x").length - 1);
        const [subfolder = ""] = /^.*[/\\]/.exec(name) ?? [];
        await files.makeFolder(files.join(out, subfolder));
        await withTensors([path], files, async (tensors) => {
          await write(
            files.join(out, name),
            mergedBytes(tensors, all, {
              scale: adapters.scale,
              fused,
              onBytes: (bytes) => onProgress?.(done += bytes, total),
            }),
          );
        });
      }
    });
    for (
      const name of [
        QUANTIZATION_FILE,
        WEIGHT_INDEX,
        ...COMPANION_FILES,
        // Marks a folder as a checkpoint.
        "config.json",
      ]
    ) {
      const path = files.join(folder, name);
      if (await files.stat(path) === undefined) continue;
      const text = await files.readText(path);
      await write(files.join(out, name), [new TextEncoder().encode(text)]);
    }
  });
  return adapters.modules.size;
}

/** A safetensors file with merged matrices. */
async function* mergedBytes(
  tensors: TensorDirectory,
  all: TensorDirectory,
  { scale, fused, onBytes }: {
    readonly scale: number;
    readonly fused: ReturnType<typeof fusedIn>;
    readonly onBytes: (bytes: number) => void;
  },
): AsyncGenerator<Uint8Array, void, undefined> {
  const entries = [...tensors.values()].filter(({ of }) => of === undefined)
    .sort((a, b) => a.offset - b.offset);
  yield safetensorsHead(
    entries.map(({ name, dtype, shape }) => [
      name,
      { dtype: dtype.toLowerCase() as StoredDType, shape },
    ]),
    { format: "pt" },
  );
  for (const entry of entries) {
    const matrices = fused.get(entry.name);
    const { a, b } = adapterNames(matrices?.module ?? entry.name);
    const [down, up] = [all.get(a), all.get(b)];
    yield down && up
      ? await merged(
        entry,
        [await readTensor(down), await readTensor(up)],
        { scale, matrices },
      )
      : await entry.source.read(entry.offset, entry.bytes);
    onBytes(entry.bytes);
  }
}

/** The matrices of all experts in one tensor. */
interface FusedMatrices {
  /** Its module in PEFT. */
  readonly module: string;
  /** Whether the axis of inputs is before that of outputs. */
  readonly inputsFirst: boolean;
}

/** The adapted tensors that have the matrices of all experts. */
function fusedIn(
  published: PublishedModel,
  lora: LoraFolder,
): ReadonlyMap<string, FusedMatrices> {
  const { adapters, parameters } = recorded(adaptersOf(lora));
  const model = adaptedModel(published, adapters)
    .build({ maxTokens: 1, maxSequences: 1, maxContext: 1 });
  const axes = new Map(
    paramFacts(trace(model)).map(({ name, axes }) => [name, axes]),
  );
  const fused = [...parameters].filter(([, isFused]) => isFused)
    .map(([name]) => name);
  return new Map([...fusedModules(fused)].map(([name, module]) => {
    const inputs = axes.get(adapterNames(module).a)!.at(-1);
    return [name, { module, inputsFirst: axes.get(name)![1] === inputs }];
  }));
}

/** The bytes of `W + scale · B A`, of a matrix or of those of all experts. */
async function merged(
  entry: TensorEntry,
  [{ shape: [rows = 0, inputs = 0], data: a }, { shape: outer, data: b }]:
    readonly [HostTensor, HostTensor],
  { scale, matrices }: {
    readonly scale: number;
    readonly matrices: FusedMatrices | undefined;
  },
): Promise<Uint8Array> {
  const [outputs = 0] = outer;
  const { inputsFirst = false } = matrices ?? {};
  const matrix = inputsFirst ? [inputs, outputs] : [outputs, inputs];
  const [experts = 1] = matrices ? entry.shape : [];
  const wanted = matrices ? [experts, ...matrix] : matrix;
  if (
    entry.shape.join() !== wanted.join() ||
    outer.join() !== [outputs, rows].join() || rows % experts !== 0
  ) {
    throw new DataError(
      `Cannot merge adapters into '${shown(entry.name)}': its shape is [${
        entry.shape.join(", ")
      }], and that of its adapters [${
        wanted.join(", ")
      }]. Give those of this checkpoint`,
    );
  }
  const stored = MERGED[entry.dtype]!;
  const rank = rows / experts;
  const values = (await readTensor(entry)).data as Float32Array;
  const row = new Float64Array(inputs);
  for (let expert = 0; expert < experts; expert++) {
    const start = expert * inputs * outputs;
    for (let o = 0; o < outputs; o++) {
      row.fill(0);
      for (let r = 0; r < rank; r++) {
        const factor = b[o * rows + r * experts + expert]!;
        const first = (expert * rank + r) * inputs;
        for (let i = 0; i < inputs; i++) row[i]! += factor * a[first + i]!;
      }
      for (let i = 0; i < inputs; i++) {
        const at = start + (inputsFirst ? i * outputs + o : o * inputs + i);
        values[at] = values[at]! + scale * row[i]!;
      }
    }
  }
  return bytesOf(isHalf(stored) ? narrow(stored, values) : values);
}
