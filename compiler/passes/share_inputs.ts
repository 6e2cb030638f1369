/**
 * Integer inputs stored after the dynamic lengths in one buffer. A launch that exceeds the binding limit reads lengths
 * and inputs through one binding.
 */

import { add, bitcast, load, u32 } from "../../spec/kernel/build.ts";
import type { Launched } from "../../spec/kernel/merge.ts";
import { replaceIn } from "../../spec/kernel/replace.ts";
import type { Binding, Stmt } from "../../spec/kernel/tree.ts";
import { vectorWidths } from "../../spec/kernel/vectors.ts";
import { alignedOffset, storedBytes } from "../../spec/layout.ts";
import { maxOverRanks } from "../../spec/plan/plan.ts";
import { type BufferDraft, LENGTHS, type Lowering } from "./lower/context.ts";

/**
 * Maximum bytes of lengths and inputs. Longer inputs are stored separately, because devices limit the size of a
 * binding.
 */
const MAX_SHARED = 1 << 20;

/** Integer inputs that may be stored after the lengths. */
export interface SharedInputs {
  /** The same launch with one binding for the lengths and its inputs, or the unchanged launch if it reads none. */
  bind(launched: Launched): Launched;
  /** Stores the inputs after the lengths, because a launch binds them so: the buffer of lengths spans them. */
  store(): void;
}

/** The integer inputs of a plan that are short enough. */
export function sharedInputs({ draft: { buffers } }: Lowering): SharedInputs {
  const offsets = offsetsOf(buffers);
  return {
    bind: lengthsBinder(offsets),
    store: () => {
      const lengths = buffers.get(LENGTHS)!;
      let bytes = 0;
      for (const [name, offset] of offsets) {
        const input = buffers.get(name)!;
        buffers.set(name, { ...input, offset });
        bytes = offset + maxOverRanks(input.bytes);
      }
      const axes = [{ ...lengths.axes[0]!, size: bytes / 4 }];
      const longer = { ...lengths, axes };
      buffers.set(LENGTHS, { ...longer, bytes: storedBytes(longer) });
    },
  };
}

/** Byte offsets of the inputs after the lengths. */
function offsetsOf(
  buffers: ReadonlyMap<string, BufferDraft>,
): ReadonlyMap<string, number> {
  const inputOffsets = new Map<string, number>();
  let end = maxOverRanks(buffers.get(LENGTHS)!.bytes);
  for (const { name, kind, dtype, bytes } of buffers.values()) {
    if (kind !== "input" || (dtype !== "i32" && dtype !== "u32")) continue;
    const offset = alignedOffset(end);
    if (offset + maxOverRanks(bytes) > MAX_SHARED) continue;
    inputOffsets.set(name, offset);
    end = offset + maxOverRanks(bytes);
  }
  return inputOffsets;
}

/** Rewrites kernels to bind lengths and the inputs after them once. */
export function lengthsBinder(
  inputOffsets: ReadonlyMap<string, number>,
): (launched: Launched) => Launched {
  // Layers repeat.
  const bodies = new Map<string, readonly Stmt[]>();
  return (launched) => bindLengthsOnce(launched, inputOffsets, bodies);
}

function bindLengthsOnce(
  launched: Launched,
  inputOffsets: ReadonlyMap<string, number>,
  bodies: Map<string, readonly Stmt[]>,
): Launched {
  const { kernel } = launched;
  const widths = vectorWidths(kernel);
  const offsets = new Map<string, number>();
  const rest: Binding[] = [];
  let all: Binding | undefined;
  for (const binding of kernel.bindings) {
    const buffer = launched.bindings[binding.name]!;
    const offset = inputOffsets.get(buffer);
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
  // The matrix form reads the original bindings.
  const { matrixForm: _, ...plain } = kernel;
  const others = Object.entries(launched.bindings)
    .filter(([binding]) => !offsets.has(binding));
  return {
    ...launched,
    kernel: { ...plain, bindings: [all, ...rest], body },
    bindings: { ...Object.fromEntries(others), [name]: LENGTHS },
  };
}
