/** Runs a target once, tensors in and tensors out. Decoders take a padded batch, other targets their own inputs. */

import { elementCount, type HostTensor, zeros } from "../runtime/mod.ts";
import { DataError, PlanError } from "../spec/errors.ts";
import { shown } from "../spec/shown.ts";
import { checkRoom, Decoder, decoderShape } from "./generation/decoder.ts";
import type { Need } from "./bounds.ts";
import { DROPPED } from "../compiler/mod.ts";
import { CHECK, type Opened } from "./open.ts";
import {
  checkTokens,
  packBatch,
  type PackedTokens,
  slicePacked,
  unpackRows,
} from "./generation/packing.ts";
import { checkTrace, traceRows } from "./replay.ts";

/** Tensors by name. */
export type Tensors = { readonly [name: string]: HostTensor };

/** A padded batch of token ids, packed. */
export interface PaddedBatch {
  readonly rows: number;
  readonly columns: number;
  readonly packed: PackedTokens;
}

/** Bounds required by a batch. */
export function needOf({ packed, rows }: PaddedBatch): Need {
  return {
    tokens: packed.ids.length,
    sequences: Math.max(1, rows),
    context: packed.position.reduce((n, p) => Math.max(n, p + 1), 1),
  };
}

/** Names of a padded batch's tensors. */
export const BATCH: readonly string[] = ["input_ids", "attention_mask"];

/** Throws DataError for a tensor that a padded batch does not have. */
export function checkBatchNames(names: readonly string[]): void {
  const other = names.find((name) => !BATCH.includes(name));
  if (other === undefined) return;
  throw new DataError(
    `Cannot use input '${
      shown(other)
    }': a checkpoint takes 'input_ids' and 'attention_mask'. Remove it`,
  );
}

/** Reads `input_ids` and `attention_mask`. Throws DataError for other tensors and other shapes. */
export function readBatch(inputs: Tensors): PaddedBatch {
  checkBatchNames(Object.keys(inputs));
  const ids = inputs["input_ids"];
  if (ids === undefined) {
    throw new DataError(
      "Cannot run the checkpoint: there is no input 'input_ids'. Give it as I32 [batch, seq]",
    );
  }
  const mask = inputs["attention_mask"];
  for (const [name, tensor] of [["input_ids", ids], ["attention_mask", mask]]) {
    const { dtype, shape } = (tensor ?? ids) as HostTensor;
    if (dtype !== "f32" && shape.length === 2) continue;
    throw new DataError(
      `Cannot use '${String(name)}': it is ${dtype.toUpperCase()} [${
        shape.join(", ")
      }]. Give it as I32 or I64 [batch, seq]`,
    );
  }
  if (mask && mask.shape.join() !== ids.shape.join()) {
    throw new DataError(
      `Cannot use 'attention_mask': its shape is [${
        mask.shape.join(", ")
      }], and that of 'input_ids' [${
        ids.shape.join(", ")
      }]. Make them the same`,
    );
  }
  const [rows = 0, columns = 0] = ids.shape;
  const packed = packBatch({
    rows,
    columns,
    ids: ids.data,
    ...(mask ? { mask: mask.data } : {}),
  });
  return { rows, columns, packed };
}

/** Options of running a loaded target. */
export interface RunOptions {
  /** Recorded choices of experts: `layer{N}.topk_idx`, written by a run of the same model on the same batch. */
  readonly replay?: Tensors;
}

/** Outputs that count choices of experts. */
const DROP_COUNT = /^(?:chosen|dropped)\.(\d+)$/;

/** Runs a loaded target on its inputs. */
export async function runOpened(
  { plan, session }: Opened,
  inputs: Tensors,
  options: RunOptions = {},
): Promise<Tensors> {
  const shape = decoderShape(plan);
  if (shape?.gives === "logits" && "input_ids" in inputs) {
    const decoder = new Decoder(session, shape);
    return await runBatch(decoder, readBatch(inputs), options);
  }
  const outputs = await session.run(plan.programs[0]!.name, inputs);
  return takeChecks(outputs);
}

/**
 * Runs a padded batch through a decoder. Outputs are padded in the same way, with 0, and with -1 in choices of experts.
 */
export async function runBatch(
  decoder: Decoder,
  batch: PaddedBatch,
  { replay }: RunOptions = {},
): Promise<Tensors> {
  const { rows, columns, packed } = batch;
  if (replay) checkTrace(replay, decoder.shape, batch);
  else if (decoder.shape.choices.length > 0) {
    throw new DataError(
      "Cannot run the plan: it replays choices of experts, and none are given. Give them with --replay",
    );
  }
  checkTokens(packed.ids, decoder.shape.vocabulary, (i) => {
    const cell = packed.cell[i]!;
    return `row ${Math.floor(cell / columns)}, column ${cell % columns}`;
  });
  const { sequences, context } = needOf(batch);
  checkRoom(decoder.shape, { sequences, context });
  const results: { [name: string]: HostTensor } = {};
  for (const [name, port] of decoder.rowOutputs) {
    const width = decoder.shape.width(port);
    const padded = zeros(port.dtype, [rows, columns, width]);
    if (port.dtype === "i32") padded.data.fill(-1);
    results[name] = padded;
  }
  const step = decoder.shape.maxTokens;
  for (let from = 0; from < packed.ids.length; from += step) {
    const tokens = slicePacked(
      packed,
      from,
      Math.min(packed.ids.length, from + step),
    );
    const choices = replay ? traceRows(replay, decoder.shape, tokens) : {};
    const outputs = takeChecks(await decoder.outputs(tokens, choices));
    addCounts(results, outputs);
    for (const [name, padded] of Object.entries(results)) {
      // With several processes, only that of rank 0 has outputs.
      if (!outputs[name]) continue;
      const { data, shape } = outputs[name];
      unpackRows(padded.data, data, {
        cell: tokens.cell,
        width: elementCount(shape.slice(1)),
      });
    }
  }
  return results;
}

/** Adds counts of choices, and of dropped ones, to those of earlier steps. */
function addCounts(
  results: { [name: string]: HostTensor },
  outputs: Tensors,
): void {
  for (const [name, tensor] of Object.entries(outputs)) {
    if (!DROP_COUNT.test(name)) continue;
    const before = results[name]?.data[0] ?? 0;
    results[name] = {
      ...tensor,
      data: Float32Array.of(before + tensor.data[0]!),
    };
  }
}

/** Dropped choices of routings with a capacity, and all choices. */
export interface Dropped {
  readonly routing: number;
  readonly chosen: number;
  readonly dropped: number;
}

/** The outputs of a model without counts of dropped choices. */
export function takeDropped(
  outputs: Tensors,
): { readonly outputs: Tensors; readonly dropped: readonly Dropped[] } {
  const of = (prefix: string, routing: number) =>
    outputs[`${prefix}${routing}`]?.data[0] ?? 0;
  return {
    outputs: Object.fromEntries(
      Object.entries(outputs).filter(([name]) => !DROP_COUNT.test(name)),
    ),
    dropped: Object.keys(outputs).flatMap((name) => {
      const routing = Number(DROP_COUNT.exec(name)?.[1] ?? NaN);
      return name === `${DROPPED.dropped}${routing}`
        ? [{
          routing,
          chosen: of(DROPPED.chosen, routing),
          dropped: of(DROPPED.dropped, routing),
        }]
        : [];
    }),
  };
}

/** Outputs without the counters of `--check`, which must all be 0. */
function takeChecks(outputs: Tensors): Tensors {
  const selected: { [name: string]: HostTensor } = {};
  for (const [name, tensor] of Object.entries(outputs)) {
    if (!CHECK.test(name)) {
      selected[name] = tensor;
      continue;
    }
    const strayed = Array.from(tensor.data).reduce((n, x) => n + x, 0);
    if (strayed > 0) {
      throw new PlanError(
        `Cannot trust the run: ${strayed} choices of routing ${
          name.slice("check.".length)
        } did not return to their tokens. Report this as a bug, with the plan`,
      );
    }
  }
  return selected;
}
