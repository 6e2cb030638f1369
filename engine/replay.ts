/** Replays recorded choices of experts: the tensors `layer{N}.topk_idx` written by a run, as inputs of another. */

import type { HostTensor } from "../runtime/mod.ts";
import { DataError } from "../spec/errors.ts";
import type { DecoderShape } from "./generation/decoder.ts";
import type { PackedTokens } from "./generation/packing.ts";

/** Inputs of a decoder's plan with choices of experts, and the outputs that record them. */
export const CHOICES = /^layer\d+\.topk_idx$/;

/** The batch of the replay. */
interface ReplayedBatch {
  readonly rows: number;
  readonly columns: number;
  readonly packed: PackedTokens;
}

/**
 * Checks a trace against a plan and a batch: a tensor `[batch, seq, k]` per router, with an existing expert for each
 * choice of a real token. Other tensors of the trace are ignored.
 */
export function checkTrace(
  trace: { readonly [name: string]: HostTensor },
  shape: DecoderShape,
  { rows, columns, packed }: ReplayedBatch,
): void {
  for (const [name, port] of shape.choices) {
    const tensor = trace[name];
    if (tensor === undefined) {
      throw new DataError(
        `Cannot replay '${name}': the trace has no such tensor. Record it by running the same model`,
      );
    }
    const k = shape.width(port);
    const wanted = [rows, columns, k];
    if (tensor.dtype === "f32" || tensor.shape.join() !== wanted.join()) {
      throw new DataError(
        `Cannot replay '${name}': it is ${tensor.dtype.toUpperCase()} [${
          tensor.shape.join(", ")
        }], and the batch needs I32 [${
          wanted.join(", ")
        }]. Record it on the same batch`,
      );
    }
    packed.cell.forEach((cell) => {
      for (let j = 0; j < k; j++) {
        const expert = tensor.data[cell * k + j]!;
        if (expert >= 0 && expert < shape.experts) continue;
        throw new DataError(
          `Cannot replay '${name}': row ${Math.floor(cell / columns)}, column ${
            cell % columns
          }, choice ${j} is expert ${expert}, and there are ${shape.experts}. Record it by running the same model`,
        );
      }
    });
  }
}

/** The choices of some tokens, in the format of a plan. */
export function traceRows(
  trace: { readonly [name: string]: HostTensor },
  shape: DecoderShape,
  tokens: PackedTokens,
): { [name: string]: HostTensor } {
  return Object.fromEntries(shape.choices.map(([name, port]) => {
    const k = shape.width(port);
    const data = new Int32Array(tokens.cell.length * k);
    tokens.cell.forEach((cell, row) => {
      for (let j = 0; j < k; j++) {
        data[row * k + j] = trace[name]!.data[cell * k + j]!;
      }
    });
    return [name, { dtype: "i32", shape: [tokens.cell.length, k], data }];
  }));
}
