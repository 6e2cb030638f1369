/** Which tokens of which sequences a step takes, and which sequences have room in the caches. */

import type { PackedTokens } from "./packing.ts";
import type { PageTable } from "./pages.ts";

/** A sequence that is continued. */
export interface Scheduled {
  /** Those of lower numbers come first. */
  readonly index: number;
  readonly prompt: readonly number[];
  /** New tokens. */
  readonly tokens: readonly number[];
  /** Tokens, of the prompt and new ones, that the decoder has. */
  fed: number;
}

/** Sequences by the place in the cache that they have. */
export type Slots<S extends Scheduled> = (S | undefined)[];

/** Sequences that have a place, those that wait for one, and the pages of the caches, where they are in pages. */
export interface Places<S extends Scheduled> {
  readonly slots: Slots<S>;
  readonly waiting: S[];
  readonly pages: PageTable | undefined;
}

/** Tokens of one step, those that a next token follows, and how many are of prompts. */
export interface StepTokens {
  readonly tokens: PackedTokens;
  readonly ends: readonly number[];
  readonly prompted: number;
}

/** Give waiting sequences the places that are free, where there are pages for all tokens that they have. */
export function admit<S extends Scheduled>(places: Places<S>): void {
  const { slots, waiting } = places;
  for (let slot = 0; slot < slots.length && waiting.length > 0; slot++) {
    if (slots[slot]) continue;
    if (!hasPages(places, { slot, sequence: waiting[0]! })) continue;
    slots[slot] = waiting.shift()!;
  }
}

/** Whether there are pages for all tokens of a sequence, or no others of its rank to wait for. */
function hasPages(
  { slots, pages }: Places<Scheduled>,
  { slot, sequence: { prompt, tokens } }: Live,
): boolean {
  if (!pages) return true;
  return pages.hasRoom(slot, prompt.length + tokens.length) ||
    !slots.some((other, i) => other && pages.owner(i) === pages.owner(slot));
}

/**
 * The next step, of at most `max` tokens: the last token of every sequence that grows, so that none waits for the prompt of
 * another, then as much of prompts as there is room for. Where a step has two tokens, one is left to prompts in any case.
 * Where pages run out, the last of the sequences gives its own back, and waits to be fed again.
 */
export function nextStep<S extends Scheduled>(
  places: Places<S>,
  max: number,
): StepTokens {
  const step: Step = { taken: [], ends: [] };
  const live = liveOf(places);
  for (const { slot, sequence } of live) {
    places.pages?.advance(slot, sequence.fed);
  }
  const fresh = live.filter(isFresh);
  const room = fresh.length > 0 ? Math.max(1, max - 1) : max;
  const grown = live.filter((one) => !isFresh(one))
    .sort((a, b) => a.sequence.tokens.length - b.sequence.tokens.length)
    .slice(0, room)
    .sort((a, b) => a.sequence.index - b.sequence.index);
  for (const one of grown) {
    while (isPlaced(places, one) && !take(places, one, step)) {
      giveBack(places, lastOf(places, one.slot));
    }
  }
  const before = step.taken.length;
  for (const one of fresh.filter((one) => isPlaced(places, one))) {
    while (isUnfed(one) && step.taken.length < max) {
      if (!share(places, one) && !take(places, one, step)) break;
    }
  }
  const { taken, ends } = step;
  if (taken.length === 0 && live.length > 1) {
    // Prompts have all pages, and none has enough.
    giveBack(places, lastOf(places, live[0]!.slot));
    return nextStep(places, max);
  }
  return {
    ends,
    prompted: taken.length - before,
    tokens: {
      ids: Int32Array.from(taken, ({ id }) => id),
      sequence: Int32Array.from(taken, ({ slot }) => slot),
      position: Int32Array.from(taken, ({ at }) => at),
      cell: new Int32Array(taken.length),
    },
  };
}

/** A sequence and its place. */
interface Live {
  readonly slot: number;
  readonly sequence: Scheduled;
}

/** What a step takes. */
interface Step {
  readonly taken: { slot: number; id: number; at: number }[];
  readonly ends: number[];
}

/** Sequences that have a place, those that came first first. */
function liveOf({ slots }: Places<Scheduled>): Live[] {
  return [...slots.entries()].flatMap(([slot, sequence]) =>
    sequence ? [{ slot, sequence }] : []
  ).sort((a, b) => a.sequence.index - b.sequence.index);
}

/** Whether there are tokens to feed that no others follow yet: of a prompt, or again. */
function isFresh({ sequence: { prompt, tokens, fed } }: Live): boolean {
  return fed < prompt.length + Math.max(0, tokens.length - 1);
}

function isUnfed({ sequence: { prompt, tokens, fed } }: Live): boolean {
  return fed < prompt.length + tokens.length;
}

function isPlaced({ slots }: Places<Scheduled>, { slot, sequence }: Live) {
  return slots[slot] === sequence;
}

function tokenOf({ prompt, tokens }: Scheduled, position: number): number {
  return prompt[position] ?? tokens[position - prompt.length]!;
}

/** Take the next token of a sequence. Returns false where there is no page for it. */
function take(
  { pages }: Places<Scheduled>,
  { slot, sequence }: Live,
  { taken, ends }: Step,
): boolean {
  const { prompt, tokens, fed } = sequence;
  const id = tokenOf(sequence, fed);
  if (pages && !pages.place(slot, fed, id)) return false;
  sequence.fed++;
  if (sequence.fed === prompt.length + tokens.length) ends.push(taken.length);
  taken.push({ slot, id, at: fed });
  return true;
}

/** Have pages of another sequence that begins as this one does, but for the last token, which the next one follows. */
function share(
  { pages }: Places<Scheduled>,
  { slot, sequence }: Live,
): boolean {
  if (!pages || sequence.fed % pages.size > 0) return false;
  const shared = pages.share(slot, blocksOf(sequence, pages.size));
  sequence.fed += shared;
  return shared > 0;
}

/** The tokens of a sequence that are not fed but for the last one, in whole blocks of `size`. */
function* blocksOf(sequence: Scheduled, size: number): Iterable<number[]> {
  const { prompt, tokens, fed } = sequence;
  const end = prompt.length + tokens.length - 1;
  for (let from = fed; from + size <= end; from += size) {
    yield Array.from({ length: size }, (_, i) => tokenOf(sequence, from + i));
  }
}

/** The last sequence of those that have pages of the same rank. */
function lastOf(places: Places<Scheduled>, slot: number): Live {
  const { pages } = places;
  return liveOf(places)
    .filter((one) => pages?.owner(one.slot) === pages?.owner(slot)).at(-1)!;
}

/** Let a sequence wait, and others have its pages. */
function giveBack<S extends Scheduled>(
  { slots, waiting, pages }: Places<S>,
  { slot }: Live,
): void {
  const sequence = slots[slot]!;
  sequence.fed = pages?.keep(slot, 0) ?? 0;
  slots[slot] = undefined;
  waiting.unshift(sequence);
}
