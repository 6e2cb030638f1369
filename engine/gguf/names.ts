/** Names of tensors: those of llama.cpp and those of checkpoints. */

import type { GgufArchitecture, TensorName } from "./architecture.ts";
import { ATTENTION, NEXT, OUTER } from "./common_names.ts";

/** Start of the names of layers in most checkpoints. */
const LAYERS = "model.layers";

/**
 * The checkpoint name of a tensor of llama.cpp, with the number of the layer. Undefined for a tensor that no model has.
 *
 * @param has whether the file has a tensor with this checkpoint name
 */
export function checkpointName(
  row: GgufArchitecture,
  name: string,
  has: (other: string) => boolean = () => true,
): TensorName | undefined {
  const outers = { ...OUTER, ...row.outer };
  if (Object.hasOwn(outers, name)) return entryOf(outers[name]!);
  const [, layer, of = "", ending = ""] =
    /^blk\.(\d+)\.(.+?)(?:\.(weight|bias))?$/.exec(name) ?? [];
  const names: GgufArchitecture["tensors"] = { ...ATTENTION, ...row.tensors };
  const found = Object.hasOwn(names, of) ? names[of] : undefined;
  if (found === undefined) return undefined;
  const entry = entryOf(found);
  if ((entry.bare ?? (ending || "weight")) !== ending) return undefined;
  const end = entry.bare === undefined ? `.${ending}` : "";
  const { layers = LAYERS } = row;
  const block = `${layers}.${layer}.`;
  const { beside, otherwise } = entry;
  const inBlock = otherwise === undefined || has(`${block}${beside}`)
    ? entry.name
    : otherwise;
  return { ...entry, name: `${block}${inBlock}${end}` };
}

/** The number of the layer of a tensor in a checkpoint, and the rest of its name. Undefined outside of layers. */
export function inLayer(
  { layers = LAYERS }: GgufArchitecture,
  name: string,
):
  | { readonly start: string; readonly layer: string; readonly rest: string }
  | undefined {
  const text = textName(name);
  if (!text.startsWith(`${layers}.`)) return undefined;
  const [, layer, rest] = /^(\d+)\.(.+)$/.exec(text.slice(layers.length + 1)) ??
    [];
  if (layer === undefined || rest === undefined) return undefined;
  return { start: `${layers}.${layer}.`, layer, rest };
}

function entryOf(found: string | TensorName): TensorName {
  return typeof found === "string" ? { name: found } : found;
}

/** The name of a tensor in a model without images. */
export function textName(name: string): string {
  return name.replace(/^model\.language_model\./, "model.")
    .replace(/^(language_model|thinker)\./, "");
}

/** Whether files of an architecture may have the layer that predicts a further token. */
export function namesPredictor({ tensors }: GgufArchitecture): boolean {
  return Object.keys(NEXT).every((name) => name in tensors);
}

/**
 * Prefixes of names in the module that predicts a further token, and in a layer. The first row matches all names of a
 * layer, so the others are tried before it.
 */
const MODULE = [
  ["mtp.layers.0.", ""],
  ["mtp.fc.", "eh_proj."],
  ["mtp.pre_fc_norm_embedding.", "enorm."],
  ["mtp.pre_fc_norm_hidden.", "hnorm."],
  ["mtp.norm.", "shared_head.norm."],
] as const;

/** Returns the name in a checkpoint of a tensor with the name of a layer. `layers`: their number. */
export function moduleName(
  { predictorModule }: GgufArchitecture,
  name: string,
  layers: number,
): string {
  const start = `${LAYERS}.${layers}.`;
  if (!predictorModule || !name.startsWith(start)) return name;
  const rest = name.slice(start.length);
  const [module, of] = MODULE.findLast(([, of]) => rest.startsWith(of))!;
  return module + rest.slice(of.length);
}

/** The inverse of `moduleName`. */
export function numberedName(
  { predictorModule }: GgufArchitecture,
  name: string,
  layers: number,
): string {
  const [module, of] = MODULE.find(([module]) => name.startsWith(module)) ?? [];
  return predictorModule && module !== undefined
    ? `${LAYERS}.${layers}.${of}${name.slice(module.length)}`
    : name;
}

/** A tensor of a checkpoint in a file. */
export interface GgufName extends TensorName {
  /** Name with the number of the layer. */
  readonly gguf: string;
  /** The number of the expert in a stacked tensor. */
  readonly expert: number | undefined;
}

/**
 * Returns the GGUF name and part of a checkpoint tensor. Undefined if llama.cpp has no name for it.
 *
 * @param has whether the layer of the tensor has another one
 */
export function ggufName(
  row: GgufArchitecture,
  name: string,
  has: (other: string) => boolean = () => false,
): GgufName | undefined {
  const [outer, of] = Object.entries(over(row.outer ?? {}, OUTER))
    .find(([, ours]) =>
      [entryOf(ours).name, entryOf(ours).also].includes(textName(name))
    ) ??
    [];
  if (outer !== undefined) {
    return { ...entryOf(of!), gguf: outer, expert: undefined };
  }
  const { start: block = "", layer, rest } = inLayer(row, name) ??
    { rest: "" };
  for (const [gguf, found] of Object.entries(over(row.tensors, ATTENTION))) {
    const entry = entryOf(found);
    const { beside, otherwise } = entry;
    const inBlock = beside === undefined || has(`${block}${beside}`)
      ? entry.name
      : otherwise;
    if (inBlock === undefined) continue;
    const [, of = "", ending] = entry.bare !== undefined
      ? [rest, rest, entry.bare]
      : /^(.+)\.(weight|bias)$/.exec(rest) ?? [];
    const [start = "", end] = inBlock.split("{expert}");
    const [, expert] = end === undefined
      ? []
      : /^(\d+)$/.exec(of.slice(start.length, of.length - end.length)) ?? [];
    const same = end === undefined
      ? of === start
      : expert !== undefined && of === `${start}${expert}${end}`;
    if (!same) continue;
    return {
      ...entry,
      gguf: `blk.${layer}.${gguf}${ending && `.${ending}`}`,
      expert: expert === undefined ? undefined : Number(expert),
    };
  }
  return undefined;
}

/** The names of an architecture, then those of all that it does not have. */
function over<T>(
  names: { readonly [name: string]: T },
  all: { readonly [name: string]: T },
): { readonly [name: string]: T } {
  const others = Object.entries(all).filter(([name]) => !(name in names));
  return { ...names, ...Object.fromEntries(others) };
}
