/** Schedules tokens per step, and sequences in the caches. */

import { type PackedTokens, packTaken, type Taken } from "./packing.ts";
import type { PageTable } from "./pages.ts";

/** A scheduled sequence. */
export interface Scheduled {
  /** Lower numbers have priority. */
  readonly index: number;
  readonly prompt: readonly number[];
  /** New tokens. */
  readonly tokens: readonly number[];
  /** Tokens that are expected to follow the new ones, for one step. */
  draft?: readonly number[];
  /** Number of fed tokens, of the prompt, new ones and drafted ones. */
  fed: number;
  /** Prompt tokens whose pages were shared before the first new token. */
  cached: number;
  /** Whether accepted tokens are fed again, because a recurrent state was rolled back. Default: false. */
  replays?: boolean;
}

/** Sequences by cache slot. */
export type Slots<S extends Scheduled> = (S | undefined)[];

/** Running and queued sequences, and the pages of the caches, if paged. */
export interface BatchState<S extends Scheduled> {
  readonly slots: Slots<S>;
  readonly waiting: S[];
  readonly pages: PageTable | undefined;
  /** Sequences whose next token is computed by a step in flight. Default: none. */
  readonly busy?: ReadonlySet<Scheduled>;
}

/** Bounds of a step. */
export interface StepBounds {
  /** Maximum tokens. */
  readonly tokens: number;
  /** Maximum decoding sequences. Default: all. */
  readonly decoding?: number;
}

/** Tokens of one step, those whose next token is requested, and the number of prompt tokens. */
export interface StepTokens {
  readonly tokens: PackedTokens;
  readonly ends: readonly number[];
  readonly prompted: number;
}

/** Assigns free slots to queued sequences, if there are pages for all their tokens. */
export function admit<S extends Scheduled>(state: BatchState<S>): void {
  const { slots, waiting } = state;
  for (let slot = 0; slot < slots.length && waiting.length > 0; slot++) {
    if (slots[slot]) continue;
    if (!hasPages(state, { slot, sequence: waiting[0]! })) continue;
    slots[slot] = waiting.shift()!;
  }
}

/** Whether there are pages for all tokens of a sequence, or no other sequence of its rank to wait for. */
function hasPages(
  { slots, pages }: BatchState<Scheduled>,
  { slot, sequence }: Live,
): boolean {
  if (!pages) return true;
  return pages.hasRoom(slot, lengthOf(sequence)) ||
    !slots.some((other, i) => other && pages.owner(i) === pages.owner(slot));
}

/**
 * The next step: the last token of every decoding sequence and its draft, so that none waits for the prompt of another,
 * then prompt tokens. If a step has at least two tokens, one is reserved for prompts. Without free pages, the last
 * sequence is preempted and later recomputed, but none while sequences are busy. Empty if nothing can be fed.
 */
export function nextStep<S extends Scheduled>(
  state: BatchState<S>,
  bounds: StepBounds,
): StepTokens {
  const step: Step = { taken: [], ends: [] };
  const { tokens: max, decoding = Infinity } = bounds;
  const { busy = new Set() } = state;
  const live = liveOf(state).filter(({ sequence }) => !busy.has(sequence));
  const preempts = busy.size === 0;
  for (const { slot, sequence } of live) {
    state.pages?.advance(slot, sequence.fed);
  }
  const fresh = live.filter(isFresh);
  const room = fresh.length > 0 ? Math.max(1, max - 1) : max;
  let left = room;
  const grown = live.filter((one) => !isFresh(one))
    .sort((a, b) => a.sequence.tokens.length - b.sequence.tokens.length)
    .filter((one) => (left -= unfedOf(one)) >= 0)
    .slice(0, decoding)
    .sort((a, b) => a.sequence.index - b.sequence.index);
  for (const one of grown) {
    while (isRunning(state, one) && unfedOf(one) > 0) {
      if (take(state, one, step)) continue;
      if (!preempts) break;
      preempt(state, lastOf(state, one.slot));
    }
    if (isRunning(state, one)) takeDraft(state, one, step);
  }
  const before = step.taken.length;
  for (const one of fresh.filter((one) => isRunning(state, one))) {
    const { slot, sequence } = one;
    const first = step.taken.length;
    while (unfedOf(one) > 0 && step.taken.length < max) {
      if (state.pages?.isDue(slot, sequence.fed, lengthOf(sequence))) {
        if (step.taken.length > first) break;
        state.pages.snapshot(slot, sequence.fed);
      }
      const shared = share(state, one);
      if (shared === "later") break;
      if (shared === 0 && !take(state, one, step)) break;
    }
  }
  const { taken, ends } = step;
  if (taken.length === 0 && live.length > 1 && preempts) {
    // All pages are used by prompts, and none has enough.
    preempt(state, lastOf(state, live[0]!.slot));
    return nextStep(state, bounds);
  }
  return {
    ends,
    prompted: taken.length - before,
    tokens: packTaken(taken),
  };
}

/** A sequence and its slot. */
interface Live {
  readonly slot: number;
  readonly sequence: Scheduled;
}

/** Tokens of a step. */
interface Step {
  readonly taken: Taken[];
  readonly ends: number[];
}

/** Sequences with a slot, oldest first. */
function liveOf({ slots }: BatchState<Scheduled>): Live[] {
  return [...slots.entries()].flatMap(([slot, sequence]) =>
    sequence ? [{ slot, sequence }] : []
  ).sort((a, b) => a.sequence.index - b.sequence.index);
}

/** Sequences that feed one new token or replayed tokens, oldest first. */
export function decodingOf<S extends Scheduled>(
  { slots }: BatchState<S>,
): { readonly slot: number; readonly sequence: S }[] {
  return [...slots.entries()].flatMap(([slot, sequence]) =>
    sequence && sequence.tokens.length > 0 && !isFresh({ slot, sequence })
      ? [{ slot, sequence }]
      : []
  ).sort((a, b) => a.sequence.index - b.sequence.index);
}

/** Whether a sequence has prompt tokens, or recomputed ones, to feed. */
function isFresh({ sequence }: Live): boolean {
  const { prompt, tokens, fed, replays } = sequence;
  return !replays && fed < prompt.length + Math.max(0, tokens.length - 1);
}

/** Number of tokens to feed, without a draft. */
export function unfedOf(
  { sequence }: { readonly sequence: Scheduled },
): number {
  return Math.max(0, lengthOf(sequence) - sequence.fed);
}

/** Number of tokens of a sequence. */
export function lengthOf(
  { prompt, tokens }: Pick<Scheduled, "prompt" | "tokens">,
): number {
  return prompt.length + tokens.length;
}

function isRunning({ slots }: BatchState<Scheduled>, { slot, sequence }: Live) {
  return slots[slot] === sequence;
}

/** The token at a position of a sequence. */
export function tokenOf(
  { prompt, tokens }: Pick<Scheduled, "prompt" | "tokens">,
  position: number,
): number {
  return prompt[position] ?? tokens[position - prompt.length]!;
}

/** Adds the next token of a sequence to the step. Returns false without a free page. */
function take(
  { pages }: BatchState<Scheduled>,
  { slot, sequence }: Live,
  { taken, ends }: Step,
): boolean {
  const { fed } = sequence;
  const id = tokenOf(sequence, fed);
  if (pages && !pages.assign(slot, fed, id)) return false;
  sequence.fed++;
  if (sequence.fed === lengthOf(sequence)) ends.push(taken.length);
  taken.push({ slot, id, at: fed });
  return true;
}

/** Adds the draft of a sequence to the step, as far as there are free pages. A recurrent state is held. */
function takeDraft(
  { pages }: BatchState<Scheduled>,
  { slot, sequence }: Live,
  { taken, ends }: Step,
): void {
  const draft = sequence.draft?.length && (pages?.hold(slot) ?? true)
    ? sequence.draft
    : [];
  let count = 0;
  for (const id of draft) {
    const at = sequence.fed;
    if (pages && !pages.assign(slot, at, id)) break;
    sequence.fed++;
    ends.push(taken.length);
    taken.push({ slot, id, at });
    count++;
  }
  sequence.draft = draft.slice(0, count);
}

/**
 * Shares pages with another sequence with the same prefix, except for the last token, which the next one follows.
 * Returns the number of shared positions. "later": another sequence takes the snapshot of their state.
 */
function share(
  { pages }: BatchState<Scheduled>,
  { slot, sequence }: Live,
): number | "later" {
  if (!pages || sequence.fed % pages.size > 0) return 0;
  const shared = pages.share(slot, blocksOf(sequence, pages.size));
  if (shared === "later") return shared;
  sequence.fed += shared;
  if (sequence.tokens.length === 0) sequence.cached += shared;
  return shared;
}

/** The tokens of a sequence that are not fed, except for the last one, in complete blocks of `size`. */
function* blocksOf(sequence: Scheduled, size: number): Iterable<number[]> {
  const { fed } = sequence;
  const end = lengthOf(sequence) - 1;
  for (let from = fed; from + size <= end; from += size) {
    yield Array.from({ length: size }, (_, i) => tokenOf(sequence, from + i));
  }
}

/** The last sequence with pages of the same rank. */
function lastOf(state: BatchState<Scheduled>, slot: number): Live {
  const { pages } = state;
  return liveOf(state)
    .filter((one) => pages?.owner(one.slot) === pages?.owner(slot)).at(-1)!;
}

/** Preempts a sequence: frees its pages and queues it. */
function preempt<S extends Scheduled>(
  { slots, waiting, pages }: BatchState<S>,
  { slot }: Live,
): void {
  const sequence = slots[slot]!;
  sequence.fed = pages?.keep(slot, 0) ?? 0;
  sequence.draft = [];
  sequence.replays = false;
  slots[slot] = undefined;
  waiting.unshift(sequence);
}
