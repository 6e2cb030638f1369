/** A tokenizer for checkpoints without one. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";

/** Writes tokenizer.json to a folder: tokens are single bytes, at most 256. */
export function writeTokenizer(folder: string, vocabulary: number): void {
  const vocab = Object.fromEntries(
    byteTokens().slice(0, vocabulary).map((text, id) => [text, id]),
  );
  const tokenizer = {
    added_tokens: [],
    pre_tokenizer: { type: "ByteLevel", use_regex: true },
    model: { type: "BPE", vocab, merges: ["a b"] },
  };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
}

/** Bytes as the vocabulary of GPT-2 has them. */
function byteTokens(): string[] {
  let others = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printed = byte > 32 && byte < 127 || byte > 160 && byte !== 173;
    return String.fromCodePoint(printed ? byte : others++);
  });
}
