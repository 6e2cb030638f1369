/** Batches of texts and of conversations, for the model of a checkpoint. */

import { microName } from "../../compiler/mod.ts";
import { type HostTensor, localItems } from "../../runtime/mod.ts";
import type { Bounds, Objective } from "../../models/mod.ts";
import { weightedTokens } from "../../models/losses.ts";
import type { DeviceSharing } from "../devices.ts";
import type { FileSystem } from "../files.ts";
import type { Chats } from "./chats.ts";
import { inputsOf, type Sample, SampleBatches, weightOf } from "./samples.ts";
import type { TrainSettings } from "./settings.ts";
import type { BatchTarget, Task, WeighedBatch } from "./task.ts";
import { type Sequence, type Text, TextRows } from "./text.ts";
import { openTokens, type Tokenizing } from "./tokens.ts";

/** The data of a task, and the model that it needs. */
export interface Source
  extends Pick<Task, "text" | "taken" | "validation" | "batch" | "close"> {
  readonly bounds: Bounds;
  /** Loss to minimize. Default: the mean over labels. */
  readonly objective: Objective | undefined;
}

/** Context of reading texts. */
interface Reading extends Tokenizing {
  readonly files: FileSystem;
  /** Folder of the tokens. Undefined: in memory. */
  readonly folder: string | undefined;
  readonly sharing: DeviceSharing;
  readonly length: number;
  readonly batch: number;
  readonly accumulate: number;
  readonly seed: number;
}

/** Texts in sequences of equal length. */
export async function textSource(
  { data, validation: given }: {
    readonly data: readonly Text[];
    readonly validation: readonly Text[] | undefined;
  },
  how: Reading,
): Promise<Source> {
  const { batch, length, seed, accumulate } = how;
  const tokens = await openTokens(data, how, how);
  const rows = new TextRows(tokens.row, { length, seed });
  const held = given && await openTokens(given, how, how);
  const validation = held && new TextRows(held.row, { length, seed });
  return {
    bounds: {
      maxTokens: batch * length,
      maxSequences: batch,
      maxContext: length,
    },
    objective: undefined,
    text: tokens.digest,
    taken: batch * accumulate,
    // All sequences of the text; the last batch may have fewer.
    validation: validation && {
      count: Math.ceil(validation.rows / batch),
      at: (index, target) =>
        batchOf(validation, target, {
          first: index * batch,
          count: Math.min(batch, validation.rows - index * batch),
        }),
    },
    batch: (index, target) =>
      batchOf(rows, target, { first: index * batch, count: batch }),
    close: async () => {
      await rows.close();
      await validation?.close();
    },
  };
}

/** Maximum samples of a packed batch, as a multiple of its rows: caches have room for each. */
const SAMPLES_A_ROW = 8;

/** Conversations, packed into batches. */
export function chatSource(
  { samples, validation, digest }: Chats,
  settings: Pick<
    TrainSettings,
    "batch" | "length" | "accumulate" | "seed" | "packing"
  >,
): Source {
  const { batch, length, accumulate = 1 } = settings;
  const all = [...samples, ...validation];
  const weighted = all.some(({ weights }) =>
    weights.some((weight) => weight !== 0 && weight !== 1)
  );
  const sizes = chatSizes(samples, settings);
  const batchOf = (some: readonly Sample[]): WeighedBatch => {
    const inputs = inputsOf(some, { weighted });
    return {
      inputs,
      counted: weightOf(some),
      tokens: inputs["ids"]!.data.length,
    };
  };
  const training = new SampleBatches(samples, sizes);
  const held = new SampleBatches(validation, sizes);
  return {
    bounds: {
      maxTokens: batch * length,
      maxSequences: sizes.sequences,
      maxContext: Math.max(...all.map(({ ids }) => ids.length - 1)),
    },
    objective: weighted ? weightedTokens : undefined,
    text: digest,
    taken: accumulate,
    validation: validation.length === 0 ? undefined : {
      count: held.count(1),
      at: (index) => Promise.resolve(batchOf(held.at(index))),
    },
    batch: (index) => Promise.resolve(batchOf(training.at(index))),
    close: () => Promise.resolve(),
  };
}

/** Steps of some epochs. The last step of an epoch may have batches of the next one. */
export function chatSteps(
  { samples }: Chats,
  settings: Parameters<typeof chatSource>[1],
  epochs: number,
): number {
  const batches = new SampleBatches(samples, chatSizes(samples, settings));
  return Math.ceil(batches.count(epochs) / (settings.accumulate ?? 1));
}

function chatSizes(
  samples: readonly Sample[],
  { batch, length, seed = 0, packing = true }: Parameters<typeof chatSource>[1],
): {
  readonly tokens: number;
  readonly sequences: number;
  readonly seed: number;
} {
  const tokens = batch * length;
  const mean = samples.reduce((n, { ids }) => n + ids.length - 1, 0) /
    samples.length;
  const sequences = packing
    ? Math.min(SAMPLES_A_ROW * batch, Math.ceil(tokens / mean))
    : batch;
  return { tokens, sequences, seed };
}

/** Sequences as inputs of a decoder; only those of this process's ranks are read. */
async function batchOf(
  rows: TextRows,
  { plan, program, ranks }: BatchTarget,
  { first, count }: { readonly first: number; readonly count: number },
): Promise<WeighedBatch> {
  const { length } = rows;
  const layout = {
    sequence: numbers(count * length, (i) => Math.floor(i / length)),
    position: numbers(count * length, (i) => i % length),
  };
  const input = "ids" in program.inputs ? "ids" : microName("ids", 0);
  const items = ranks.map((rank) =>
    localItems(plan, rank, { program, input, inputs: layout })
  );
  const reachesAll = items.includes(undefined);
  const reached = new Set(
    items.flatMap((some) => [...some ?? []].map((i) => Math.floor(i / length))),
  );
  const ids = numbers(count * length, () => 0);
  const labels = numbers(count * length, () => 0);
  for (let i = 0; i < count; i++) {
    if (!reachesAll && !reached.has(i)) continue;
    const row: Sequence = await rows.at(first + i);
    ids.data.set(row.ids, i * length);
    labels.data.set(row.labels, i * length);
  }
  const tokens = count * length;
  return { inputs: { ...layout, ids, labels }, counted: tokens, tokens };
}

function numbers(count: number, of: (i: number) => number): HostTensor {
  const data = Int32Array.from({ length: count }, (_, i) => of(i));
  return { dtype: "i32", shape: [count], data };
}
