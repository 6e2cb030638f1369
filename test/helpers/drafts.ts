/** Generation with drafted tokens, compared with generation without them. */

import type { Test } from "tap";
import {
  type Decoder,
  type Drafter,
  generate,
  type GenerateOptions,
  Speculation,
} from "../../engine/mod.ts";
import { repeatWith } from "./seed.ts";

/** Tokens by sequence. */
export type Tokens = readonly (readonly number[])[];

/** Prompts whose first tokens are equal. */
export const DRAFT_PROMPTS: Tokens = [9, 20, 33, 14].map((length, i) =>
  Array.from({ length }, (_, j) => (j < 8 ? 7 : 31 + i) * (j + 1) % 190)
);

/** A clock by which drafted tokens cost nothing, so that they always pay. */
export const FREE_DRAFTS = { now: () => 0 } as const;

/**
 * Fails if drafts change a token that a decoder generates from `DRAFT_PROMPTS`, or if all or few drafts are accepted.
 * Returns the tokens without drafts, which `plain` gives if they are known.
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
