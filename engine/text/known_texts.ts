/** Texts that tokens completed before, so that streams rarely call a tokenizer's process. */

import type { CompletedText, HeldText } from "./tokenizer.ts";

/** As `Tokenizer.complete`. */
type Complete = (
  held: HeldText,
  added: readonly number[],
  shown?: readonly string[],
) => Promise<CompletedText>;

/** Maximum number of known texts. */
const MAX_TEXTS = 2 ** 15;

/** More than any token id. */
const TOKENS = 2 ** 24;

/**
 * Completes texts without `complete` where possible: after a token that ended its text, the text that a token completes
 * depends only on both tokens.
 */
export function withKnownTexts(complete: Complete): Complete {
  const known = new Map<string, Map<number, string>>();
  let count = 0;
  const knownFor = (shown: readonly string[]) => {
    const key = shown.join("\0");
    const texts = known.get(key) ?? new Map<number, string>();
    known.set(key, texts);
    return texts;
  };
  return async (held, added, shown = []) => {
    const texts = knownFor(shown);
    const pieces: string[] = [];
    let state = held;
    while (pieces.length < added.length) {
      const token = added[pieces.length]!;
      const piece = texts.get(pairOf(state, token));
      if (piece === undefined) break;
      pieces.push(piece);
      state = { tokens: [token], given: 1 };
    }
    if (pieces.length === added.length) return { pieces, held: state };
    const others = added.slice(pieces.length);
    const rest = await complete(state, others, shown);
    if (count > MAX_TEXTS) {
      known.clear();
      count = 0;
    }
    const learned = knownFor(shown);
    for (const [pair, piece] of pairsOf(state, others, rest)) {
      learned.set(pair, piece);
      count++;
    }
    return { pieces: [...pieces, ...rest.pieces], held: rest.held };
  };
}

/** The pair of the only token of a complete text, or of none, and the next token. NaN if the text is longer. */
function pairOf({ tokens, given }: HeldText, next: number): number {
  if (tokens.length > 1 || given !== tokens.length) return NaN;
  return TOKENS * ((tokens[0] ?? -1) + 1) + next;
}

/** Pairs and the texts that they complete. An empty text may be incomplete. */
function* pairsOf(
  held: HeldText,
  added: readonly number[],
  { pieces }: CompletedText,
): Iterable<readonly [pair: number, piece: string]> {
  let { tokens, given } = held;
  for (const [i, token] of added.entries()) {
    const pair = pairOf({ tokens, given }, token);
    const piece = pieces[i]!;
    tokens = [...tokens, token];
    if (piece === "") continue;
    tokens = tokens.slice(given);
    given = tokens.length;
    if (!Number.isNaN(pair)) yield [pair, piece];
  }
}
