/** Streams each weight from the files to the ranks that own it; host memory holds one bounded piece at a time. */

import { STORED_BYTES } from "../spec/dtype.ts";
import { DataError, invariant } from "../spec/errors.ts";
import { onRank, type Plan, type PlanWeight } from "../spec/plan.ts";
import type { RankMemory } from "./memory.ts";
import { readExactly } from "./file_source.ts";
import type { TensorDirectory, TensorEntry } from "./safetensors.ts";
import { type Placed, scatter } from "./scatter.ts";
import { weightForm } from "./weight_form.ts";

/** Settings of `loadWeights`. */
export interface LoadWeightsOptions {
  /** Bytes of weights written to ranks so far, and in all. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Bytes of a buffer that are assembled in host memory at a time. */
  readonly pieceBytes?: number;
  /** Bytes that are read from a file at a time. */
  readonly readBytes?: number;
}

/** Defaults: what a rank takes beside its share of the weights while it loads them. */
const PIECE_BYTES = 64 << 20, READ_BYTES = 8 << 20;

/** What all weights are loaded with. */
interface Loading {
  readonly tensors: TensorDirectory;
  readonly pieceBytes: number;
  readonly readBytes: number;
  readonly images: Images;
  /** Bytes were written to a rank. */
  wrote(bytes: number): void;
}

/** Memory for one image of a piece after the other: garbage of that size would lie around too long. */
class Images {
  #memory = new ArrayBuffer(0);

  /** Zeros, in place of the last image. */
  of(bytes: number): Uint8Array<ArrayBuffer> {
    if (this.#memory.byteLength < bytes) this.#memory = new ArrayBuffer(bytes);
    return new Uint8Array(this.#memory, 0, bytes).fill(0);
  }
}

/** A source tensor of a weight: which stack index it is, and where it lies. */
interface Source {
  readonly slot: number;
  readonly entry: TensorEntry;
}

/** Fill the weight buffers of all ranks. */
export async function loadWeights(
  plan: Plan,
  ranks: readonly RankMemory[],
  tensors: TensorDirectory,
  options: LoadWeightsOptions = {},
): Promise<void> {
  const { onProgress } = options;
  for (const weight of plan.weights) checkSources(weight, ranks, tensors);
  const total = plan.weights.reduce(
    (n, { buffer }) =>
      n + ranks.reduce(
        (m, { rank }) => m + onRank(plan.buffers[buffer]!.bytes, rank),
        0,
      ),
    0,
  );
  let done = 0;
  const { pieceBytes = PIECE_BYTES, readBytes = READ_BYTES } = options;
  const images = new Images();
  const loading = {
    ...{ tensors, pieceBytes, readBytes, images },
    wrote: (bytes: number) => {
      done += bytes;
      onProgress?.(done, total);
    },
  };
  for (const weight of plan.weights) {
    for (const owners of ownersOf(weight, ranks)) {
      await loadWeight(weight, owners, loading);
    }
  }
}

function sourceName({ source, pick }: PlanWeight, index: number): string {
  return pick ? source.replaceAll(`{${pick.axis}}`, String(index)) : source;
}

/** Refuse before anything is read: missing tensors, other dtypes, other shapes. */
function checkSources(
  weight: PlanWeight,
  ranks: readonly RankMemory[],
  tensors: TensorDirectory,
): void {
  const { pick } = weight;
  const picked = pick?.stacked
    ? new Set(ranks.flatMap((memory) => memory.picked(pick)))
    : [0];
  const wanted = `${weight.stored.toUpperCase()} [${weight.shape.join(", ")}]`;
  for (const index of picked) {
    const name = sourceName(weight, index);
    const entry = tensors.get(name);
    if (!entry) {
      throw new DataError(
        `Cannot load weight '${name}': the files have no tensor of that name. It must be ${wanted}`,
      );
    }
    if (weightForm(weight, entry) === undefined) {
      const found = `${entry.dtype} [${entry.shape.join(", ")}]`;
      throw new DataError(
        `Cannot load weight '${name}': it is ${found} in '${entry.source.name}' and the plan expects ${wanted}. Compile the plan for these files`,
      );
    }
  }
}

/** Ranks by what they hold: those of one group are filled together. */
function ownersOf(
  { pick }: PlanWeight,
  ranks: readonly RankMemory[],
): RankMemory[][] {
  const groups = new Map<string, RankMemory[]>();
  for (const memory of ranks) {
    const key = pick ? memory.picked(pick).join() : "";
    groups.set(key, [...groups.get(key) ?? [], memory]);
  }
  return [...groups.values()];
}

async function loadWeight(
  weight: PlanWeight,
  owners: readonly RankMemory[],
  { tensors, pieceBytes, readBytes, images, wrote }: Loading,
): Promise<void> {
  const [first] = owners as [RankMemory];
  const buffer = first.plan(weight.buffer);
  const bytes = onRank(buffer.bytes, first.rank);
  const width = STORED_BYTES[weight.stored];
  const sizes = buffer.axes.map(({ size }) => onRank(size, first.rank));
  const strides = stridesOf(sizes, buffer.rowStride);
  const held = weight.pick && first.picked(weight.pick);
  const sources: Source[] = weight.pick?.stacked
    ? held!.map((index, slot) => ({
      slot,
      entry: tensors.get(sourceName(weight, index))!,
    }))
    : [{ slot: 0, entry: tensors.get(weight.source)! }];
  // Pieces are runs of the outermost axis; a buffer too long for one is read in several passes.
  const outer = strides.length > 1 ? strides[0]! * width : bytes;
  const step = Math.max(1, Math.floor(pieceBytes / outer)) * outer;
  for (let begin = 0; begin < bytes; begin += alignedStep(step, bytes)) {
    const end = Math.min(bytes, begin + alignedStep(step, bytes));
    const image = images.of(end - begin);
    const target = width === 2
      ? new Uint16Array(image.buffer, 0, image.length / 2)
      : new Uint32Array(image.buffer, 0, image.length / 4);
    for (const source of sources) {
      const placed = place(weight, source, first, strides, sizes);
      if (placed.lowest * width >= end || placed.highest * width < begin) {
        continue;
      }
      await stream(weight, source.entry, placed, readBytes, {
        target,
        from: begin / width,
      });
    }
    for (const memory of owners) {
      memory.device.write(memory.buffer(weight.buffer), begin, image);
      wrote(image.length);
    }
  }
}

/** Device writes are whole words. */
function alignedStep(step: number, bytes: number): number {
  return Math.min(bytes, step % 4 === 0 ? step : 2 * step);
}

function stridesOf(sizes: readonly number[], rowStride?: number): number[] {
  const strides = new Array<number>(sizes.length).fill(1);
  for (let i = sizes.length - 2; i >= 0; i--) {
    const inner = i === sizes.length - 2
      ? rowStride ?? sizes[i + 1]!
      : sizes[i + 1]!;
    strides[i] = strides[i + 1]! * inner;
  }
  return strides;
}

/** Where the elements of a source tensor go in the buffer: an offset, and for each file axis a stride and the indices held. */
function place(
  weight: PlanWeight,
  { slot }: Source,
  memory: RankMemory,
  strides: readonly number[],
  sizes: readonly number[],
): Placed {
  const { axes } = memory.plan(weight.buffer);
  const strideOf = (name: string) => {
    const i = axes.findIndex(({ axis }) => axis === name);
    invariant(i >= 0, `weight '${weight.source}' has no axis '${name}'`);
    return strides[i]!;
  };
  const { pick } = weight;
  const offset = pick?.stacked ? slot * strideOf(pick.axis) : 0;
  const fileAxes = weight.axes.map((name, i) => {
    const stride = strideOf(name);
    if (pick && !pick.stacked && pick.axis === name) {
      const local = new Int32Array(weight.shape[i]!).fill(-1);
      memory.picked(pick).forEach((global, at) => local[global] = at);
      return { size: weight.shape[i]!, stride, local };
    }
    return { size: weight.shape[i]!, stride, local: undefined };
  });
  const span = sizes.reduce((n, size, i) => {
    const stacked = pick?.stacked && axes[i]!.axis === pick.axis;
    return n + (stacked ? 0 : Math.max(0, size - 1) * strides[i]!);
  }, 0);
  return { axes: fileAxes, lowest: offset, highest: offset + span };
}

/** Read a tensor in runs of whole rows of its first axis, skipping rows that nobody here holds. */
async function stream(
  weight: PlanWeight,
  entry: TensorEntry,
  placed: Placed,
  readBytes: number,
  into: { target: Uint16Array | Uint32Array; from: number },
): Promise<void> {
  const width = STORED_BYTES[weight.stored];
  const [outer] = placed.axes;
  const rows = outer?.size ?? 1;
  const rowBytes = rows === 0 ? 0 : entry.bytes / rows;
  const most = Math.max(1, Math.floor(readBytes / Math.max(1, rowBytes)));
  const length = into.target.length;
  const needed = (row: number) => {
    if (!outer) return true;
    const local = outer.local ? outer.local[row]! : row;
    if (local < 0) return false;
    const low = placed.lowest + local * outer.stride;
    const high = placed.highest -
      (placedRows(outer) - 1 - local) * outer.stride;
    return low < into.from + length && high >= into.from;
  };
  for (let row = 0; row < rows;) {
    if (!needed(row)) {
      row++;
      continue;
    }
    let end = row + 1;
    while (end < rows && end - row < most && needed(end)) end++;
    const bytes = await readExactly(
      entry.source,
      entry.offset + row * rowBytes,
      (end - row) * rowBytes,
    );
    const bytesEach = weightForm(weight, entry) === "bytes";
    // A copy only where the bytes are not aligned for a typed array.
    const { buffer, byteOffset } = bytes.byteOffset % width === 0
      ? bytes
      : bytes.slice();
    const count = bytes.byteLength / width;
    const source = bytesEach
      ? Uint32Array.from(bytes)
      : width === 2
      ? new Uint16Array(buffer, byteOffset, count)
      : new Uint32Array(buffer, byteOffset, count);
    const bad = scatter(source, [row, end], placed, {
      ...into,
      stored: weight.stored,
    });
    if (bad !== undefined) {
      throw new DataError(
        `Cannot load weight '${entry.name}': element [${
          bad.join(", ")
        }] in '${entry.source.name}' is not a finite number. Get the file again`,
      );
    }
    row = end;
  }
}

function placedRows({ size, local }: Placed["axes"][number]): number {
  return local ? local.reduce((n, at) => n + (at >= 0 ? 1 : 0), 0) : size;
}
