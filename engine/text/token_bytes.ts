/** Bytes of single tokens, which may be parts of characters. */

/** How the texts of a vocabulary state bytes. */
export type VocabularyKind = "byte_level" | "byte_fallback" | "raw";

/** Parts of a tokenizer that state its tokens. */
interface Vocabulary {
  get_vocab(withAddedTokens?: boolean): ReadonlyMap<string, number>;
  get_added_tokens_decoder(): ReadonlyMap<number, { readonly content: string }>;
  decode(
    tokens: number[],
    options: { readonly skip_special_tokens: boolean },
  ): string;
}

/** Kind of the vocabulary of a tokenizer.json. */
export function vocabularyKind(
  file: { readonly decoder?: unknown },
): VocabularyKind {
  const decoder = JSON.stringify(file.decoder ?? null);
  return decoder.includes("ByteLevel")
    ? "byte_level"
    : decoder.includes("ByteFallback")
    ? "byte_fallback"
    : "raw";
}

/** Returns a function from token ids to bytes. `file`: the contents of tokenizer.json. */
export function tokenBytes(
  vocabulary: Vocabulary,
  file: { readonly decoder?: unknown },
): (token: number) => number[] {
  const kind = vocabularyKind(file);
  const levels = byteLevels();
  const texts = new Map<number, string>();
  for (const [text, id] of vocabulary.get_vocab()) texts.set(id, text);
  const added = vocabulary.get_added_tokens_decoder();
  const decoded = (token: number) => [
    ...new TextEncoder().encode(
      vocabulary.decode([token], { skip_special_tokens: false }),
    ),
  ];
  return (token) => {
    const text = texts.get(token);
    if (text === undefined || added.has(token)) return decoded(token);
    if (kind === "byte_level") {
      return [...text].flatMap((character) => levels.get(character) ?? []);
    }
    const [, hex] = kind === "byte_fallback"
      ? /^<0x([0-9A-F]{2})>$/i.exec(text) ?? []
      : [];
    return hex === undefined ? decoded(token) : [parseInt(hex, 16)];
  };
}

/**
 * The byte of each character of byte-level vocabularies (GPT-2): printable characters of Latin-1 state themselves, and
 * those from U+0100 on state the other bytes in order.
 */
function byteLevels(): ReadonlyMap<string, number> {
  const levels = new Map<string, number>();
  let others = 0;
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable = byte > 0x20 && byte < 0x7f ||
      byte > 0xa0 && byte !== 0xad;
    const point = isPrintable ? byte : 0x100 + others++;
    levels.set(String.fromCodePoint(point), byte);
  }
  return levels;
}
