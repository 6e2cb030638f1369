/** Repeats the sequences of a receipt, and compares. */

import { Batch } from "../batch.ts";
import type { Decoder } from "../decoder.ts";
import { Speculation } from "../speculation/speculation.ts";
import type { CheckpointHashes } from "./checkpoint_hashes.ts";
import { type ReceiptSequence, samplingOfReceipt } from "./receipt.ts";

/** Number of recorded tokens that are computed together. */
export const TOGETHER = 8;

/** The differences of a checkpoint from a recorded one. */
export function checkpointDifferences(
  recorded: CheckpointHashes,
  found: CheckpointHashes,
): string[] {
  const differences: string[] = [];
  for (
    const [name, what] of [
      ["config", "config.json"],
      ["tokenizer", "tokenizer.json"],
    ] as const
  ) {
    if (recorded[name] !== found[name]) differences.push(`${what} differs`);
  }
  const blocks = new Set([
    ...Object.keys(recorded.weights),
    ...Object.keys(found.weights),
  ]);
  for (const block of blocks) {
    if (recorded.weights[block] === found.weights[block]) continue;
    differences.push(`weights of '${block}' differ`);
  }
  return differences;
}

/** Generates recorded sequences again. Returns the first difference of each. */
export async function replaySequences(
  decoder: Decoder,
  recorded: readonly ReceiptSequence[],
): Promise<string[]> {
  const known = new Map(recorded.map((one) => [one.prompt, one.tokens]));
  const speculation = !decoder.rollsBack ? undefined : new Speculation({
    max: TOGETHER - 1,
    drafter: {
      kindOf: () => ({ name: "recorded", assumed: 1 }),
      draft: (wanted) =>
        Promise.resolve(
          wanted.map(({ sequence: { prompt, tokens }, count }) =>
            known.get(prompt)!.slice(tokens.length, tokens.length + count)
          ),
        ),
    },
    // Recorded tokens are nearly always right, so they always pay.
    now: () => 0,
  });
  const batch = new Batch(decoder, { speculation });
  const sequences = recorded.map(({ prompt, tokens, sampling }) =>
    batch.add(prompt, {
      ...samplingOfReceipt(sampling),
      maxNewTokens: tokens.length,
      stop: new Set(),
      receipt: true,
    })
  );
  while (await batch.step());
  return sequences.flatMap((found, i) => {
    const difference = differenceOf(recorded[i]!, found);
    return difference === undefined ? [] : [`sequence ${i + 1}: ${difference}`];
  });
}

function differenceOf(
  recorded: Pick<ReceiptSequence, "tokens" | "logits">,
  found: {
    readonly tokens: readonly number[];
    readonly hashes: ReceiptSequence["logits"];
  },
): string | undefined {
  const token = recorded.tokens.findIndex((id, i) => id !== found.tokens[i]);
  const end = token < 0 ? Infinity : token;
  const hashes = new Map(found.hashes);
  for (const [index, hash] of recorded.logits) {
    if (index > end || hashes.get(index) === hash) continue;
    return `logits before new token ${index + 1} differ`;
  }
  if (token < 0) return undefined;
  return `new token ${token + 1} is ${recorded.tokens[token]!}, and ${
    found.tokens[token] ?? "none"
  } when it is generated again`;
}
