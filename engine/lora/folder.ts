/** Folders of adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors. */

import {
  adaptedParameter,
  type AdapterNames,
  adapterNames,
  type Adapters,
  type Model,
  type TrainedDType,
} from "../../compiler/mod.ts";
import { safetensorsHead, type TensorDirectory } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { ADAPTER_CONFIG, type Checkpoint } from "../checkpoint/checkpoint.ts";
import type { FileSystem } from "../files.ts";
import { readJsonObject } from "../json_file.ts";
import { withTensors } from "../checkpoint/tensors.ts";
import {
  adaptedModel,
  type AdaptedParameters,
  type LoraSettings,
} from "./targets.ts";

const WEIGHTS = "adapter_model.safetensors";

/** Adapters of a folder. */
export interface LoraFolder {
  readonly rank: number;
  /** Factor of the product of A and B. */
  readonly scale: number;
  /** The file of their tensors. */
  readonly path: string;
  /** The adapted modules: `model.layers.0.self_attn.q_proj`. */
  readonly modules: ReadonlySet<string>;
  /** The last parts of the names of adapted parameters that are not those of linear modules. */
  readonly parameters: readonly string[];
}

type Config = { readonly [key: string]: unknown };

/** Options of PEFT that change results, with the values under which they do not. */
const NEUTRAL: { readonly [option: string]: (value: unknown) => boolean } = {
  use_dora: (value) => value === false,
  fan_in_fan_out: (value) => value === false,
  lora_bias: (value) => value === false,
  bias: (value) => value === "none",
  rank_pattern: isEmpty,
  alpha_pattern: isEmpty,
  modules_to_save: isEmpty,
  layer_replication: isEmpty,
  trainable_token_indices: isEmpty,
};

function isEmpty(value: unknown): boolean {
  return typeof value === "object" && value !== null &&
    Object.keys(value).length === 0;
}

/** Reads a folder of adapters. Throws DataError for other methods than LoRA, and for options that are not supported. */
export async function readLora(
  folder: string,
  files: FileSystem,
): Promise<LoraFolder> {
  const config = await readJsonObject(
    files.join(folder, ADAPTER_CONFIG),
    files,
  );
  const refuse = (state: string, fix: string) =>
    new DataError(`Cannot use the adapters of '${folder}': ${state}. ${fix}`);
  const { peft_type: method, r: rank, lora_alpha: alpha } = config;
  if (method !== "LORA") {
    throw refuse(`their method is ${shown(String(method))}`, "Give LoRA's");
  }
  for (const [option, isNeutral] of Object.entries(NEUTRAL)) {
    const value = config[option];
    if (value === undefined || value === null || isNeutral(value)) continue;
    throw refuse(
      `${ADAPTER_CONFIG} has '${option}' ${shown(JSON.stringify(value))}`,
      "Merge them with PEFT, and give the merged checkpoint",
    );
  }
  if (
    !Number.isSafeInteger(rank) || (rank as number) < 1 ||
    typeof alpha !== "number" || !Number.isFinite(alpha)
  ) {
    throw refuse(
      `'r' or 'lora_alpha' of ${ADAPTER_CONFIG} is missing`,
      "Copy it again",
    );
  }
  const path = files.join(folder, WEIGHTS);
  if (await files.stat(path) === undefined) {
    throw refuse(`${WEIGHTS} is missing`, "Copy it there");
  }
  const modules = await withTensors(
    [path],
    files,
    (tensors) => Promise.resolve(modulesOf(tensors, refuse)),
  );
  const length = rank as number;
  return {
    rank: length,
    scale: alpha / (config["use_rslora"] === true ? Math.sqrt(length) : length),
    path,
    modules,
    parameters: namesIn(config["target_parameters"]),
  };
}

/** The strings of a list. */
function namesIn(value: unknown): string[] {
  return Array.isArray(value)
    ? value.filter((name) => typeof name === "string")
    : [];
}

/** The modules with both matrices. */
function modulesOf(
  tensors: TensorDirectory,
  refuse: (state: string, fix: string) => DataError,
): ReadonlySet<string> {
  const modules = new Set<string>();
  for (const name of tensors.keys()) {
    const known = adaptedParameter(name);
    const names: AdapterNames | undefined = known &&
      adapterNames(known.parameter);
    if (!names || !tensors.has(names.a) || !tensors.has(names.b)) {
      throw refuse(
        `tensor '${
          shown(name)
        }' is not one of two matrices 'lora_A' and 'lora_B' of a module`,
        "Save adapters of linear modules only",
      );
    }
    modules.add(known!.parameter.replace(/\.weight$/, ""));
  }
  return modules;
}

/** The adapters of a folder for a model. Experts of one parameter all have adapters, or none. */
export function adaptersOf(
  { rank, scale, modules, parameters }: LoraFolder,
): Adapters {
  return {
    rank,
    scale,
    adapts: (parameter, fused) =>
      fused
        ? parameters.some((target) => `.${parameter}`.endsWith(`.${target}`))
        : modules.has(
          parameter.replace(/\.weight$/, "").replace(/\{\w+\}/g, "0"),
        ),
  };
}

/** A checkpoint with the adapters of a folder. Its weights are unchanged. */
export function adaptCheckpoint(
  { published, weightFiles, ...checkpoint }: Checkpoint,
  lora: LoraFolder,
): Checkpoint {
  const adapted = adaptedModel(published, adaptersOf(lora));
  return {
    ...checkpoint,
    weightFiles: [...weightFiles, lora.path],
    published: {
      ...adapted,
      build: (options) => {
        const model = adapted.build(options);
        return {
          ...model,
          build: (traced) => {
            const built = model.build(traced);
            // A part of the layers has a part of the modules.
            if (!options.layers) checkModules(built.declared, lora);
            return built;
          },
        };
      },
    },
  };
}

/** Rejects modules of a folder that are not among the parameters of a model. */
function checkModules(
  declared: ReturnType<Model["build"]>["declared"],
  { modules, path }: Pick<LoraFolder, "modules" | "path">,
): void {
  const unused = new Set(modules);
  for (const node of declared) {
    const known = node.primitive === "param" &&
      adaptedParameter(node.params.name);
    if (known) remove(unused, known.parameter);
  }
  const [module] = unused;
  if (module === undefined) return;
  throw new DataError(
    `Cannot use the adapters of '${path}': the model multiplies by no matrix '${
      shown(module)
    }'. Give those of this model`,
  );
}

/** Removes the modules of a parameter, `{expert}` standing for every expert. */
function remove(modules: Set<string>, parameter: string): void {
  const module = parameter.replace(/\.weight$/, "");
  if (!module.includes("{")) return void modules.delete(module);
  const pattern = new RegExp(
    `^${
      module.split(/\{\w+\}/).map((part) =>
        part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
      ).join("\\d+")
    }$`,
  );
  for (const name of modules) if (pattern.test(name)) modules.delete(name);
}

/** Writes adapter_config.json. */
export async function writeLoraConfig(
  folder: string,
  files: FileSystem,
  { rank, alpha, base, parameters }: Pick<LoraSettings, "rank" | "alpha"> & {
    /** The checkpoint of the model. */
    readonly base: string;
    readonly parameters: AdaptedParameters;
  },
): Promise<void> {
  const [modules, fused] = [new Set<string>(), new Set<string>()];
  for (const [name, isFused] of parameters) {
    // Parameters are named without the layer.
    if (isFused) fused.add(name.replace(/^.*?\.\d+\./, ""));
    else modules.add(name.replace(/\.weight$/, "").split(".").at(-1)!);
  }
  const config: Config = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: base,
    r: rank,
    lora_alpha: alpha,
    target_modules: [...modules].sort(),
    ...fused.size === 0 ? {} : { target_parameters: [...fused].sort() },
    lora_dropout: 0,
    bias: "none",
    fan_in_fan_out: false,
    use_rslora: false,
    inference_mode: true,
  };
  await files.write(files.join(folder, ADAPTER_CONFIG), [
    new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`),
  ]);
}

/** Writes adapter_model.safetensors from the files of a training. */
export async function writeLoraWeights(
  folder: string,
  files: FileSystem,
  paths: readonly string[],
): Promise<void> {
  await withTensors([...paths], files, async (tensors) => {
    // The same order on every mesh.
    const entries = [...tensors.values()].sort((a, b) =>
      a.name < b.name ? -1 : 1
    );
    async function* parts(): AsyncGenerator<Uint8Array, void, undefined> {
      yield safetensorsHead(
        entries.map(({ name, dtype, shape }) => [
          name,
          // A training writes f32, f16 or bf16.
          { dtype: dtype.toLowerCase() as TrainedDType, shape },
        ]),
        { format: "pt" },
      );
      for (const { source, offset, bytes } of entries) {
        yield await source.read(offset, bytes);
      }
    }
    await files.write(files.join(folder, WEIGHTS), parts());
  });
}
