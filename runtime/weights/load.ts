/** Streams each weight from the files to its ranks. Host memory contains one bounded piece at a time. */

import { STORED_BYTES } from "../../spec/dtype.ts";
import { DataError, invariant } from "../../spec/errors.ts";
import {
  indicesOn,
  sourceName,
  sourceNames,
  stackedOn,
} from "../../spec/axis_parts.ts";
import { sum } from "../../spec/sum.ts";
import { groupRankOf } from "../../spec/mesh.ts";
import { onRank, type Plan, type PlanWeight } from "../../spec/plan/plan.ts";
import { fileExperts } from "./mapped.ts";
import type { RankMemory } from "../memory.ts";
import { type FileSource, readExactly } from "./file_source.ts";
import type { TensorDirectory, TensorEntry } from "./safetensors.ts";
import { scatter, type ScatterLayout, type Words } from "./scatter.ts";
import { weightForm } from "./form.ts";

/** Options of `loadWeights`. */
export interface LoadWeightsOptions {
  /** Bytes of weights written to ranks so far, and in total. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Bytes of a buffer that are assembled in host memory at a time. */
  readonly pieceBytes?: number;
  /** Bytes read from a file at a time. */
  readonly readBytes?: number;
  /** Whether buffers that map files have the bytes of these tensors already. Default: they are written. */
  readonly areMapped?: boolean;
}

/** Defaults: memory of a rank besides its weights while loading. */
const PIECE_BYTES = 64 << 20, READ_BYTES = 8 << 20;

/** Context of loading all weights. */
interface Loading {
  readonly tensors: TensorDirectory;
  readonly pieceBytes: number;
  readonly readBytes: number;
  readonly images: Images;
  /** Called after bytes were written to a rank. */
  wrote(bytes: number): void;
}

/** Reused memory for images of pieces: garbage of that size would be collected late. */
class Images {
  #memory = new ArrayBuffer(0);

  /** Zeros in place of the last image. */
  of(bytes: number): Uint8Array<ArrayBuffer> {
    if (this.#memory.byteLength < bytes) this.#memory = new ArrayBuffer(bytes);
    return new Uint8Array(this.#memory, 0, bytes).fill(0);
  }
}

/** A source tensor of a weight: its stack index and location. */
interface Source {
  readonly slot: number;
  readonly entry: TensorEntry;
}

/** A plan with only the weights whose tensors are given. */
export function withGivenWeights(plan: Plan, tensors: TensorDirectory): Plan {
  const weights = plan.weights.filter((weight) =>
    sourceNames(plan, weight).some((name) => tensors.has(name))
  );
  return { ...plan, weights };
}

/** Fills the weight buffers of all ranks. Returns the written bytes. */
export async function loadWeights(
  plan: Plan,
  ranks: readonly RankMemory[],
  tensors: TensorDirectory,
  options: LoadWeightsOptions = {},
): Promise<number> {
  const { onProgress } = options;
  for (const weight of plan.weights) checkSources(plan, weight, ranks, tensors);
  const total = plan.weights.reduce(
    (n, { buffer }) =>
      n + ranks.reduce(
        (m, { rank }) => m + onRank(plan.buffers[buffer]!.bytes, rank),
        0,
      ),
    0,
  );
  let done = 0;
  const {
    pieceBytes = PIECE_BYTES,
    readBytes = READ_BYTES,
    areMapped = false,
  } = options;
  const images = new Images();
  const loading = {
    tensors,
    pieceBytes,
    readBytes,
    images,
    wrote: (bytes: number) => {
      done += bytes;
      onProgress?.(done, total);
    },
  };
  for (const weight of plan.weights) {
    const holding = ranks.filter((memory) => memory.has(weight.buffer));
    for (const owners of ownersOf(plan, weight, holding)) {
      const others: RankMemory[] = [];
      for (const memory of owners) {
        if (
          areMapped && memory.isMapped(weight.buffer) ||
          fileExperts(plan, weight, memory, tensors)
        ) {
          loading.wrote(memory.buffer(weight.buffer).bytes);
        } else others.push(memory);
      }
      if (others.length > 0) await loadWeight(plan, weight, others, loading);
    }
  }
  return done;
}

/** Reads files completely, so that the system caches them. */
export async function preloadFiles(
  sources: readonly FileSource[],
  onProgress: (done: number, total: number) => void,
): Promise<void> {
  const total = sum(sources.map(({ size }) => size));
  let done = 0;
  for (const source of sources) {
    for (let at = 0; at < source.size; at += READ_BYTES) {
      const bytes = Math.min(READ_BYTES, source.size - at);
      await readExactly(source, at, bytes);
      onProgress(done += bytes, total);
    }
  }
}

/** Rejects missing tensors, other dtypes and other shapes before anything is read. */
function checkSources(
  plan: Plan,
  weight: PlanWeight,
  ranks: readonly RankMemory[],
  tensors: TensorDirectory,
): void {
  const picked = weight.stack === undefined
    ? [0]
    : new Set(ranks.flatMap(({ rank }) => stackedOn(plan, weight, rank)));
  const wanted = `${weight.stored.toUpperCase()} [${weight.shape.join(", ")}]`;
  for (const index of picked) {
    const name = sourceName(plan, weight, index);
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

/** Ranks grouped by shard. A group is filled together. */
function ownersOf(
  plan: Plan,
  { axes, stack }: PlanWeight,
  ranks: readonly RankMemory[],
): RankMemory[][] {
  const groups = new Map<string, RankMemory[]>();
  const sharded = [...axes, ...stack === undefined ? [] : [stack]]
    .flatMap((axis) => plan.axes[axis]?.over ?? []);
  for (const memory of ranks) {
    const key = String(groupRankOf(plan.mesh, memory.rank, sharded));
    groups.set(key, [...groups.get(key) ?? [], memory]);
  }
  return [...groups.values()];
}

async function loadWeight(
  plan: Plan,
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
  const sources: Source[] = weight.stack === undefined
    ? [{ slot: 0, entry: tensors.get(weight.source)! }]
    : stackedOn(plan, weight, first.rank).map((index, slot) => ({
      slot,
      entry: tensors.get(sourceName(plan, weight, index))!,
    }));
  // Pieces are ranges of the outermost axis; a buffer too long for one is read in several passes.
  const outer = strides.length > 1 ? strides[0]! * width : bytes;
  const step = Math.max(1, Math.floor(pieceBytes / outer)) * outer;
  for (let begin = 0; begin < bytes; begin += alignedStep(step, bytes)) {
    const end = Math.min(bytes, begin + alignedStep(step, bytes));
    const image = images.of(end - begin);
    const target = wordsIn(image, width);
    for (const source of sources) {
      const scattered = scatterOf(plan, weight, source, first, {
        strides,
        sizes,
      });
      if (
        scattered.lowest * width >= end || scattered.highest * width < begin
      ) {
        continue;
      }
      await stream(weight, source.entry, scattered, readBytes, {
        target,
        from: begin / width,
      });
    }
    for (const memory of owners) {
      memory.write(weight.buffer, begin, image);
      wrote(image.length);
    }
  }
}

/** Device writes are entire words. */
function alignedStep(step: number, bytes: number): number {
  return Math.min(bytes, step % 4 === 0 ? step : 4 * step);
}

/** Bytes as elements of a width; copied only if they are not aligned. */
function wordsIn(bytes: Uint8Array, width: number): Words {
  if (width === 1) return bytes;
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % width === 0
    ? bytes
    : bytes.slice();
  return width === 2
    ? new Uint16Array(buffer, byteOffset, byteLength / 2)
    : new Uint32Array(buffer, byteOffset, byteLength / 4);
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

/**
 * Destinations of the elements of a source tensor in the buffer: an offset, and for each file axis a stride and the
 * selected indices.
 */
function scatterOf(
  plan: Plan,
  weight: PlanWeight,
  { slot }: Source,
  memory: RankMemory,
  { strides, sizes }: {
    readonly strides: readonly number[];
    readonly sizes: readonly number[];
  },
): ScatterLayout {
  const { axes } = memory.plan(weight.buffer);
  const strideOf = (name: string) => {
    const i = axes.findIndex(({ axis }) => axis === name);
    invariant(i >= 0, `weight '${weight.source}' has no axis '${name}'`);
    return strides[i]!;
  };
  const { stack } = weight;
  const offset = stack === undefined ? 0 : slot * strideOf(stack);
  const fileAxes = weight.axes.map((name, i) => {
    const stride = strideOf(name);
    const held = indicesOn(plan, name, memory.rank);
    if (held) {
      const local = new Int32Array(weight.shape[i]!).fill(-1);
      held.forEach((global, at) => local[global] = at);
      return { size: weight.shape[i]!, stride, local };
    }
    return { size: weight.shape[i]!, stride, local: undefined };
  });
  const span = sizes.reduce((n, size, i) => {
    const stacked = axes[i]!.axis === stack;
    return n + (stacked ? 0 : Math.max(0, size - 1) * strides[i]!);
  }, 0);
  return { axes: fileAxes, lowest: offset, highest: offset + span };
}

/** Reads a tensor in ranges of entire rows of its first axis, skipping rows that no rank here needs. */
async function stream(
  weight: PlanWeight,
  entry: TensorEntry,
  scattered: ScatterLayout,
  readBytes: number,
  into: { target: Words; from: number },
): Promise<void> {
  const width = STORED_BYTES[weight.stored];
  const [outer] = scattered.axes;
  const rows = outer?.size ?? 1;
  const rowBytes = rows === 0 ? 0 : entry.bytes / rows;
  const max = Math.max(1, Math.floor(readBytes / Math.max(1, rowBytes)));
  const length = into.target.length;
  const needed = (row: number) => {
    if (!outer) return true;
    const local = outer.local ? outer.local[row]! : row;
    if (local < 0) return false;
    const low = scattered.lowest + local * outer.stride;
    const high = scattered.highest -
      (scatteredRows(outer) - 1 - local) * outer.stride;
    return low < into.from + length && high >= into.from;
  };
  for (let row = 0; row < rows;) {
    if (!needed(row)) {
      row++;
      continue;
    }
    let end = row + 1;
    while (end < rows && end - row < max && needed(end)) end++;
    const bytes = await readExactly(
      entry.source,
      entry.offset + row * rowBytes,
      (end - row) * rowBytes,
    );
    const bytesEach = weightForm(weight, entry) === "bytes";
    const source = bytesEach ? Uint32Array.from(bytes) : wordsIn(bytes, width);
    const bad = scatter(source, [row, end], scattered, {
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

function scatteredRows({ size, local }: ScatterLayout["axes"][number]): number {
  return local ? local.reduce((n, at) => n + (at >= 0 ? 1 : 0), 0) : size;
}
