/** The decoders of the weights of a matrix multiplication. */

import type { FileDType } from "../../../spec/dtype.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { isPackedDType } from "../../../spec/weights/packed.ts";
import { perWord } from "../pieces/decode.ts";
import { byLayout } from "../pieces/layout.ts";
import { blockDecoder, runLengthOf } from "./block_weights.ts";
import { unitOf, widthOf } from "./columns.ts";
import type { DecodedMatmul, LoadedMatmul, WeightDecoder } from "./decoder.ts";
import { denseDecoder } from "./dense_weights.ts";
import type { WeightsOptions } from "./options.ts";
import { packedDecoder } from "./packed_weights.ts";

/** The decoder of an encoding. */
function decoderFor(
  stored: FileDType,
): (o: LoadedMatmul, i: number) => WeightDecoder {
  if (!isPackedDType(stored)) return denseDecoder;
  return byLayout(stored, {
    words: () => packedDecoder,
    blocks: () => blockDecoder,
  });
}

/** A matrix multiplication with the decoders of its weights. */
export function decoded<O extends WeightsOptions>(o: O): O & DecodedMatmul {
  const loaded: O & LoadedMatmul = {
    ...o,
    width: widthOf(o),
    unit: unitOf(o),
    termCount: termCountOf(o),
    runLength: runLengthIn(o),
  };
  const decoders = o.weights.map(({ stored }, i) =>
    decoderFor(stored)(loaded, i)
  );
  return { ...loaded, decoders };
}

/** Whether a workgroup loads blocks together. */
function loadsBlocks({ weights, tile }: WeightsOptions): boolean {
  return tile.right === "workgroup" &&
    weights.every(({ stored }) => runLengthOf(stored) !== undefined);
}

/**
 * Indices of k in an iteration of a sum: those of a word along k, if k is innermost or a workgroup loads blocks
 * together.
 */
function termCountOf(o: WeightsOptions): number {
  const all = loadsBlocks(o);
  return Math.max(
    ...o.weights.map(({ inside, stored }) =>
      inside === "k" || all ? perWord(stored) : 1
    ),
  );
}

/** Indices of a run. Undefined also if blocks of the sum do not begin with groups of a block. */
function runLengthIn(o: WeightsOptions): number | undefined {
  const isAligned = Number(o.k) / (o.segments ?? 1) % EXACT.block === 0;
  return isAligned && loadsBlocks(o)
    ? Math.min(...o.weights.map(({ stored }) => runLengthOf(stored)!))
    : undefined;
}
