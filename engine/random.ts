/**
 * Random weights and inputs, so that a model runs without files. Numbers depend only on the seed, the tensor name and
 * the element index: they are equal on every mesh.
 */

import {
  elementCount,
  type FileTensor,
  type HostTensor,
  narrow,
  safetensorsHead,
  type TensorDirectory,
  type TensorEntry,
} from "../runtime/mod.ts";
import { modelAxis, sourceNames } from "../spec/axis_parts.ts";
import { STORED_BYTES, type StoredDType } from "../spec/dtype.ts";
import { DataError } from "../spec/errors.ts";
import type { Plan, Port } from "../spec/plan/plan.ts";
import { uniformNoise } from "./noise.ts";
import type { Tensors } from "./run.ts";

/** Maximum items of a dynamic axis, and tokens per sequence of a batch. */
const ITEMS = 24;
const SEQUENCES = 3;

/** Random stream of a tensor (FNV-1a). */
function streamOf(name: string): number {
  let hash = 0x811c9dc5;
  for (const character of name) {
    hash = Math.imul(hash ^ character.codePointAt(0)!, 0x01000193);
  }
  return hash >>> 0;
}

/**
 * Range of a tensor: vectors are near 1, like gains; matrices are scaled such that sums over their last axis stay near
 * 1.
 */
function rangeOf(shape: readonly number[]): { low: number; high: number } {
  if (shape.length < 2) return { low: 0.5, high: 1.5 };
  const high = Math.sqrt(3 / shape.at(-1)!);
  return { low: -high, high };
}

/** Random tensors for all weights of a plan, generated on read. Throws DataError for unsupported encodings. */
export function randomWeights(plan: Plan, seed: number): TensorDirectory {
  const tensors = new Map<string, TensorEntry>();
  for (const weight of plan.weights) {
    const { stored, shape } = weight;
    if (stored !== "f32" && stored !== "f16" && stored !== "bf16") {
      throw new DataError(
        `Cannot draw weight '${weight.source}': it is stored as ${stored}, and only f32, f16 and bf16 are drawn. Give it with --weights`,
      );
    }
    for (const name of sourceNames(plan, weight)) {
      const bytes = elementCount(shape) * STORED_BYTES[stored];
      tensors.set(name, {
        name,
        dtype: stored.toUpperCase(),
        shape,
        offset: 0,
        bytes,
        source: {
          name: `random numbers of seed ${seed}`,
          size: bytes,
          read: (offset, length) =>
            Promise.resolve(
              draw(stored, { name, shape, seed, offset, length }),
            ),
        },
      });
    }
  }
  return tensors;
}

/** The parts of a safetensors file with the random weights of a plan. */
export async function* randomWeightParts(
  plan: Plan,
  seed: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  const entries = [...randomWeights(plan, seed).values()];
  yield safetensorsHead(entries.map(({ name, dtype, shape }) => [name, {
    dtype: dtype.toLowerCase() as StoredDType & FileTensor["dtype"],
    shape,
  }]));
  for (const { source, bytes } of entries) yield await source.read(0, bytes);
}

/** Bytes of a random tensor. */
function draw(
  stored: Extract<StoredDType, "f32" | "f16" | "bf16">,
  { name, shape, seed, offset, length }: {
    readonly name: string;
    readonly shape: readonly number[];
    readonly seed: number;
    readonly offset: number;
    readonly length: number;
  },
): Uint8Array {
  const width = STORED_BYTES[stored];
  const first = Math.floor(offset / width);
  const end = Math.ceil((offset + length) / width);
  const numbers = uniformNoise(end - first, {
    seed,
    first,
    stream: streamOf(name),
    ...rangeOf(shape),
  });
  const { buffer } = stored === "f32" ? numbers : narrow(stored, numbers);
  return new Uint8Array(buffer, offset - first * width, length);
}

/** A padded batch of random token ids. */
export function randomBatch(
  vocabulary: number,
  seed: number,
): Tensors {
  const columns = ITEMS / SEQUENCES;
  const port = {
    dtype: "i32",
    axes: [],
    buffer: "",
    below: vocabulary,
  } as const;
  return {
    input_ids: randomTensor("input_ids", port, {
      seed,
      shape: [SEQUENCES, columns],
    }),
  };
}

/**
 * Random inputs for the first program of a plan: dynamic axes have up to 24 items. Inputs named `sequence` and
 * `position` describe three consecutive sequences of equal length.
 */
export function randomInputs(plan: Plan, seed: number): Tensors {
  const lengthOf = (axis: string) => {
    const { size, dynamic, exact } = plan.axes[axis]!;
    return dynamic && !exact ? Math.min(ITEMS, size) : size;
  };
  const inputs = Object.entries(plan.programs[0]!.inputs);
  return Object.fromEntries(inputs.map(([name, port]) => {
    const shape = port.axes.map((axis) => lengthOf(modelAxis(plan, axis)));
    const below = port.indexes === undefined
      ? port.below
      : lengthOf(modelAxis(plan, port.indexes));
    return [
      name,
      counted(name, shape, below) ??
        randomTensor(name, { ...port, ...below ? { below } : {} }, {
          shape,
          seed,
        }),
    ];
  }));
}

/** The sequence or the position of each item. */
function counted(
  name: string,
  shape: readonly number[],
  below = Infinity,
): HostTensor | undefined {
  if (name !== "sequence" && name !== "position") return undefined;
  const count = elementCount(shape);
  const each = name === "sequence"
    ? Math.ceil(count / Math.min(SEQUENCES, below))
    : Math.min(Math.ceil(count / SEQUENCES), below);
  const data = Int32Array.from(
    { length: count },
    (_, i) => name === "sequence" ? Math.floor(i / each) : i % each,
  );
  return { dtype: "i32", shape, data };
}

function randomTensor(
  name: string,
  { dtype, below = 2 }: Port,
  { shape, seed }: { readonly shape: readonly number[]; readonly seed: number },
): HostTensor {
  const options = { seed, stream: streamOf(name) };
  const count = elementCount(shape);
  if (dtype === "f32") {
    const data = uniformNoise(count, { ...options, low: -1, high: 1 });
    return { dtype, shape, data };
  }
  const integers = uniformNoise(count, options)
    .map((x) => Math.min(below - 1, Math.floor(x * below)));
  return dtype === "i32"
    ? { dtype, shape, data: Int32Array.from(integers) }
    : { dtype, shape, data: Uint32Array.from(integers) };
}
