/**
 * Integer inputs in the memory of the dynamic lengths, behind them: a launch that would have more bindings than a device
 * allows reads lengths and inputs through one binding.
 */

import { add, bitcast, load, u32 } from "../../spec/kernel/build.ts";
import type { Launched } from "../../spec/kernel/merge.ts";
import { replaceIn } from "../../spec/kernel/replace.ts";
import type { Binding, Stmt } from "../../spec/kernel/tree.ts";
import { vectorWidths } from "../../spec/kernel/vectors.ts";
import { STORAGE_ALIGNMENT } from "../../spec/limits.ts";
import { storedBytes } from "../../spec/layout.ts";
import { maxOverRanks } from "../../spec/plan.ts";
import { LENGTHS, type Lowering } from "./lower/context.ts";

/** Bytes of lengths and inputs, at most: longer inputs stay apart, as devices limit the length of a binding. */
const MAX_SHARED = 1 << 20;

/** Where inputs begin behind the lengths, in bytes. */
export type SharedInputs = ReadonlyMap<string, number>;

/** Where integer inputs would be. */
export function placeInputs({ draft: { buffers } }: Lowering): SharedInputs {
  const places = new Map<string, number>();
  let end = maxOverRanks(buffers.get(LENGTHS)!.bytes);
  for (const { name, kind, dtype, bytes } of buffers.values()) {
    if (kind !== "input" || (dtype !== "i32" && dtype !== "u32")) continue;
    const offset = Math.ceil(end / STORAGE_ALIGNMENT) * STORAGE_ALIGNMENT;
    if (offset + maxOverRanks(bytes) > MAX_SHARED) continue;
    places.set(name, offset);
    end = offset + maxOverRanks(bytes);
  }
  return places;
}

/** Store the inputs there: the buffer of lengths spans them. */
export function shareInputs(
  { draft: { buffers } }: Lowering,
  inputs: SharedInputs,
): void {
  const lengths = buffers.get(LENGTHS)!;
  let bytes = 0;
  for (const [name, offset] of inputs) {
    const input = buffers.get(name)!;
    buffers.set(name, { ...input, offset });
    bytes = offset + maxOverRanks(input.bytes);
  }
  const axes = [{ ...lengths.axes[0]!, size: bytes / 4 }];
  const longer = { ...lengths, axes };
  buffers.set(LENGTHS, { ...longer, bytes: storedBytes(longer) });
}

/** The same launch with one binding for the lengths and those of its inputs that are behind them; itself where none is. */
export function lengthsBinder(
  inputs: SharedInputs,
): (launched: Launched) => Launched {
  // Layers repeat.
  const bodies = new Map<string, readonly Stmt[]>();
  return (launched) => bindLengthsOnce(launched, inputs, bodies);
}

function bindLengthsOnce(
  launched: Launched,
  inputs: SharedInputs,
  bodies: Map<string, readonly Stmt[]>,
): Launched {
  const { kernel } = launched;
  const widths = vectorWidths(kernel);
  const offsets = new Map<string, number>();
  const rest: Binding[] = [];
  let all: Binding | undefined;
  for (const binding of kernel.bindings) {
    const buffer = launched.bindings[binding.name]!;
    const offset = inputs.get(buffer);
    if (buffer === LENGTHS) all = binding;
    else if (offset === undefined || widths.has(binding.name)) {
      rest.push(binding);
    } else offsets.set(binding.name, offset / 4);
  }
  if (offsets.size === 0) return launched;
  const [first] = offsets.keys();
  const { name } = all ??= { name: first!, type: "u32", access: "read" };
  const key = JSON.stringify([kernel.name, name, ...offsets]);
  const body = bodies.get(key) ?? replaceIn(kernel.body, {
    load({ binding, type, index }) {
      const offset = offsets.get(binding);
      return offset === undefined
        ? undefined
        : bitcast(type, load(name, add(u32(offset), index), "u32"));
    },
  });
  bodies.set(key, body);
  const kept = Object.entries(launched.bindings)
    .filter(([binding]) => !offsets.has(binding));
  return {
    ...launched,
    kernel: { ...kernel, bindings: [all, ...rest], body },
    bindings: { ...Object.fromEntries(kept), [name]: LENGTHS },
  };
}
