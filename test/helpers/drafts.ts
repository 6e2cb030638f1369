/** Compares generation with and without speculative decoding. */

import type { Test } from "tap";
import {
  type Decoder,
  type Drafter,
  generate,
  type GenerateOptions,
  Speculation,
} from "../../engine/mod.ts";
import { repeatWith } from "./seed.ts";

/** Tokens of each sequence. */
export type Tokens = readonly (readonly number[])[];

/** Prompts with a common prefix of eight tokens. */
export const DRAFT_PROMPTS: Tokens = [9, 20, 33, 14].map((length, i) =>
  Array.from({ length }, (_, j) => (j < 8 ? 7 : 31 + i) * (j + 1) % 190)
);

/** Clock by which drafts take no time, so that speculation always pays off. */
export const FREE_DRAFTS = { now: () => 0 } as const;

/**
 * Fails if drafts change a token that a decoder generates from `DRAFT_PROMPTS`, or if at most 20 drafts or all are
 * accepted. Returns the tokens without drafts. `plain`: these tokens, if known.
 */
export async function draftsChangeNoToken(
  t: Test,
  decoder: Decoder,
  { title, options, drafter, plain }: {
    readonly title: string;
    readonly options: Partial<GenerateOptions>;
    readonly drafter: (plain: Tokens) => Drafter;
    readonly plain?: Tokens | undefined;
  },
): Promise<Tokens> {
  const run = async (speculation?: Speculation): Promise<Tokens> => {
    const { sequences } = await generate(decoder, DRAFT_PROMPTS, {
      ...options,
      maxNewTokens: 40,
      stop: new Set<number>(),
      speculation,
    });
    return sequences.map(({ tokens }) => tokens);
  };
  const wanted = plain ?? await run();
  const speculation = new Speculation({
    max: 3,
    drafter: drafter(wanted),
    ...FREE_DRAFTS,
  });
  t.strictSame(await run(speculation), wanted, `${title}. ${repeatWith()}`);
  const { accepted, drafted } = speculation.stats;
  t.ok(20 < accepted && accepted < drafted, `${accepted} of ${drafted}`);
  return wanted;
}
