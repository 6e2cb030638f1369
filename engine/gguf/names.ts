/** Names of tensors: those of llama.cpp and those of checkpoints. */

import type { GgufArchitecture, TensorName } from "./architecture.ts";
import { ATTENTION, OUTER } from "./common_names.ts";

/**
 * The checkpoint name of a tensor of llama.cpp, with the number of the layer. Undefined for a tensor that no model has.
 */
export function checkpointName(
  row: GgufArchitecture,
  name: string,
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
  return { ...entry, name: `model.layers.${layer}.${entry.name}${end}` };
}

function entryOf(found: string | TensorName): TensorName {
  return typeof found === "string" ? { name: found } : found;
}

/** A tensor of a checkpoint in a file. */
export interface GgufName extends TensorName {
  /** Name with the number of the layer. */
  readonly gguf: string;
  /** The number of the expert in a stacked tensor. */
  readonly expert: number | undefined;
}

/** Returns the GGUF name and part of a checkpoint tensor. Undefined if llama.cpp has no name for it. */
export function ggufName(
  row: GgufArchitecture,
  name: string,
): GgufName | undefined {
  const [outer, of] = Object.entries({ ...OUTER, ...row.outer })
    .find(([, ours]) => entryOf(ours).name === name) ?? [];
  if (outer !== undefined) {
    return { ...entryOf(of!), gguf: outer, expert: undefined };
  }
  const [, layer, rest = ""] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? [];
  // Names of the architecture precede those of all.
  const names: GgufArchitecture["tensors"] = {
    ...row.tensors,
    ...Object.fromEntries(
      Object.entries(ATTENTION).filter(([name]) => !(name in row.tensors)),
    ),
  };
  for (const [gguf, found] of Object.entries(names)) {
    const entry = entryOf(found);
    const [, of = "", ending] = entry.bare !== undefined
      ? [rest, rest, entry.bare]
      : /^(.+)\.(weight|bias)$/.exec(rest) ?? [];
    const [start = "", end] = entry.name.split("{expert}");
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
