/** The current parameters of a training as tensors for another session, without a file. */

import {
  bytesOf,
  equalWeights,
  type TensorDirectory,
  type TensorEntry,
} from "../../runtime/mod.ts";
import { isTrained, type TrainedParameters } from "../../compiler/mod.ts";
import { onRank, type Plan } from "../../spec/plan/plan.ts";
import type { RolloutBytes } from "../../spec/plan_summary.ts";
import { parameterPieces, type Piece, type Reading } from "./parameters.ts";

/** The bytes of the weights that rollouts share with the training, and of those that are moved or copied. */
export function weightBytes(
  training: Plan,
  rollouts: Plan,
  trained?: TrainedParameters,
): Omit<RolloutBytes, "mesh"> {
  const equal = equalWeights(rollouts, training);
  const found = { shared: 0, moved: 0, copied: 0 };
  for (const { buffer, source } of rollouts.weights) {
    const how = equal.has(buffer)
      ? "shared"
      : isTrained(source, trained)
      ? "moved"
      : "copied";
    const { bytes } = rollouts.buffers[buffer]!;
    for (let rank = 0; rank < rollouts.ranks; rank++) {
      found[how] += onRank(bytes, rank);
    }
  }
  return found;
}

/**
 * The trained parameters by the names of a checkpoint. They are read from the devices when they are needed; host
 * memory has the shards of about one weight at a time.
 */
export function liveTensors(from: Reading): TensorDirectory {
  const recent = new Map<Piece, ReturnType<Piece["read"]>>();
  const readPiece = (piece: Piece) => {
    const known = recent.get(piece);
    if (known) return known;
    if (recent.size === from.plan.ranks) {
      recent.delete(recent.keys().next().value!);
    }
    const read = piece.read();
    recent.set(piece, read);
    return read;
  };
  const entries = from.ranks.flatMap((rank) =>
    parameterPieces(from, rank).flatMap((piece) =>
      piece.tensors.map(({ name, dtype, shape }, i): [string, TensorEntry] => {
        const bytes = (dtype === "f32" ? 4 : 2) *
          shape.reduce((n, size) => n * size, 1);
        const source = {
          name: "the training",
          size: bytes,
          read: async (offset: number, length: number) =>
            bytesOf((await readPiece(piece))[i]!.data)
              .subarray(offset, offset + length),
        };
        const entry = { name, shape, source, offset: 0, bytes };
        return [name, { ...entry, dtype: dtype.toUpperCase() }];
      })
    )
  );
  return new Map(entries);
}
