/**
 * Continuous batching: each step feeds one token of every decoding sequence, with speculation also drafted ones, and
 * prompt tokens up to the limit of the step. On pipeline stages, several steps are in flight, each with a part of the
 * decoding sequences. Sequences are added and cancelled between steps and are independent.
 */

import { DataError } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import { stepAhead, stepsAhead } from "./ahead.ts";
import type { Decoder } from "./decoder.ts";
import { checkTokens } from "./packing.ts";
import {
  type Candidates,
  candidatesOf,
  randomNumbers,
  type RoutedExperts,
  type SamplingOptions,
} from "./sampling.ts";
import {
  admit,
  type BatchState,
  decodingOf,
  lengthOf,
  nextStep,
  type Slots,
  type StepTokens,
  unfedOf,
} from "./schedule.ts";
import {
  type BatchSequence,
  endingOf,
  grow,
  type Growing,
  neededBy,
  type SequenceOptions,
} from "./sequence.ts";
import type { Speculation } from "./speculation/speculation.ts";

/** Result of a step. */
export interface BatchStep {
  /** Number of fed tokens, and of prompt tokens among them. */
  readonly tokens: number;
  readonly prompted: number;
  /** New tokens. */
  readonly chosen: number;
  /** Number of later steps that the device ran with this one, without the host between them. */
  readonly following: number;
  /** Experts of the tokens before new ones, if they were read. */
  readonly experts?: readonly RoutedExperts[];
}

/** A step in flight. */
interface StepInFlight extends StepTokens {
  /** The sequence of each of the `ends`. */
  readonly growing: readonly Growing[];
  /** Whether its tokens are results of the step before. */
  readonly isAhead: boolean;
  readonly following: BatchStep["following"];
  /** Whether the choices of routers are read. */
  readonly experts: boolean;
  readonly next: Promise<readonly Candidates[]>;
}

/** Sequences that share the caches of a decoder. */
export class Batch {
  readonly #decoder: Decoder;
  readonly #waiting: Growing[] = [];
  readonly #slots: Slots<Growing>;
  readonly #retainsLast: boolean;
  readonly #speculation: Speculation | undefined;
  readonly #expertSteps: number;
  /** Maximum steps in flight. */
  readonly #atOnce: number;
  /** Steps in flight, oldest first. */
  readonly #flight: StepInFlight[] = [];
  #count = 0;
  #steps = 0;

  /**
   * @param retainsLast whether the last sequence keeps its pages after its end, for a later batch. Default: false
   * @param expertSteps the experts are read in one of this many steps. Default: only if a sequence requests them
   */
  constructor(
    decoder: Decoder,
    { retainsLast = false, speculation, expertSteps = Infinity }: {
      readonly retainsLast?: boolean;
      readonly speculation?: Speculation | undefined;
      readonly expertSteps?: number;
    } = {},
  ) {
    this.#expertSteps = expertSteps;
    this.#decoder = decoder;
    this.#slots = Array.from({ length: decoder.shape.maxSequences });
    this.#retainsLast = retainsLast;
    this.#speculation = speculation;
    // A draft continues the tokens of all earlier steps.
    this.#atOnce = speculation ? 1 : decoder.concurrentRuns;
    if (speculation && !decoder.rollsBack) {
      throw new DataError(
        "Cannot speculate with this model: its recurrent states contain every fed token and have no snapshots, so rejected ones cannot be removed. Run it without --speculate",
      );
    }
  }

  /** Number of queued sequences. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Number of sequences in the caches. */
  get running(): number {
    return this.#slots.filter((sequence) => sequence).length;
  }

  /**
   * Adds a sequence that continues a prompt (token ids). Throws DataError for a prompt or options that the decoder does
   * not support.
   *
   * @param fed number of prompt tokens whose keys and values are already in slot 0
   */
  add(
    prompt: readonly number[],
    options: SequenceOptions,
    { fed = 0 } = {},
  ): BatchSequence {
    const index = this.#count++;
    checkPrompt(this.#decoder, prompt, `prompt ${index + 1}`);
    checkSampling(this.#decoder, options);
    const sequence: Growing = {
      index,
      prompt,
      tokens: [],
      logprobs: [],
      hashes: [],
      fed,
      cached: fed,
      options,
      ending: undefined,
      cancelled: false,
      random: randomNumbers(options.seed ?? 0, options.stream ?? index),
    };
    this.#waiting.push(sequence);
    return sequence;
  }

  /** Ends a sequence before the next step. */
  cancel(sequence: BatchSequence): void {
    (sequence as Growing).cancelled = true;
  }

  /**
   * Completes the oldest step in flight, after it has started as many as pipeline stages execute concurrently.
   * Undefined if no sequence is left.
   */
  async step(): Promise<BatchStep | undefined> {
    while (this.#flight.length < this.#atOnce && await this.#start());
    this.#startAhead();
    const step = this.#flight.shift();
    if (!step) return this.#endStuck();
    const { tokens, ends, growing, experts, prompted, following } = step;
    const next = await step.next;
    // The ends of a sequence are consecutive.
    const bySlot = new Map<number, Candidates[]>();
    ends.forEach((end, i) => {
      const slot = tokens.sequence[end]!;
      // A cancelled sequence may have left its slot.
      if (this.#slots[slot] !== growing[i]) return;
      const known = bySlot.get(slot);
      if (known) known.push(next[i]!);
      else bySlot.set(slot, [next[i]!]);
    });
    let chosen = 0;
    for (const [slot, candidates] of bySlot) {
      chosen += await this.#choose(slot, candidates);
    }
    const [after] = this.#flight;
    if (after?.isAhead) this.#know(after, bySlot);
    const done = {
      tokens: tokens.ids.length,
      prompted,
      chosen,
      following,
      ...experts ? { experts: next.map(({ experts }) => experts!) } : {},
    };
    this.#speculation?.end({ ...done, sequences: bySlot.size });
    return done;
  }

  /** Starts a step with sequences that are not in flight. Returns false if it would have no tokens. */
  async #start(): Promise<boolean> {
    const [slots, waiting] = [this.#slots, this.#waiting];
    this.#removeCancelled();
    const busy = new Set(this.#flight.flatMap(({ growing }) => growing));
    const state = { slots, waiting, pages: this.#decoder.pages, busy };
    admit(state);
    await this.#draft(state);
    const step = nextStep(state, {
      tokens: this.#decoder.shape.maxTokens,
      decoding: Math.ceil(this.running / this.#atOnce),
    });
    const { tokens, ends } = step;
    if (tokens.ids.length === 0) return false;
    const experts = ++this.#steps % this.#expertSteps === 0 ||
      ends.some((end) => slots[tokens.sequence[end]!]!.options.experts);
    const later = experts ? [] : this.#stepsAfter(step, state);
    if (later.length > 0) this.#runSeries([step, ...later]);
    else this.#run(step, { experts });
    return true;
  }

  /** The steps that the device can run after a step without the host between them. */
  #stepsAfter(
    step: StepTokens,
    state: BatchState<Growing>,
  ): readonly StepTokens[] {
    const { seriesLength, shape: { maxContext } } = this.#decoder;
    if (this.#speculation || step.tokens.ids.length > step.ends.length) {
      return [];
    }
    const untilExperts = this.#expertSteps - this.#steps % this.#expertSteps;
    const count = Math.min(seriesLength, untilExperts) - 1;
    return stepsAhead(state, this.#growingOf(step), { maxContext, count });
  }

  /** Puts steps in flight that the device runs without the host between them. */
  #runSeries(steps: readonly StepTokens[]): void {
    const growing = this.#growingOf(steps[0]!);
    const ran = this.#decoder.series(steps.map(({ tokens }) => tokens));
    this.#steps += steps.length - 1;
    for (const [i, step] of steps.entries()) {
      const next = ran.then((all) => all[i]!);
      next.catch(() => {});
      this.#flight.push({
        ...step,
        growing,
        experts: false,
        isAhead: i > 0,
        following: steps.length - 1 - i,
        next,
      });
    }
  }

  #growingOf({ tokens, ends }: StepTokens): Growing[] {
    return ends.map((end) => this.#slots[tokens.sequence[end]!]!);
  }

  /** Records the new tokens that a later step in flight feeds. */
  #know(
    { growing, tokens: { sequence, position } }: StepInFlight,
    grown: { has(slot: number): boolean },
  ): void {
    growing.forEach(({ tokens }, i) => {
      const slot = sequence[i]!;
      if (!grown.has(slot)) return;
      this.#decoder.pages?.know(slot, position[i]!, tokens.at(-1)!);
    });
  }

  /** Starts the step after the only one in flight, if the device can continue with its tokens. */
  #startAhead(): void {
    const [step] = this.#flight;
    const next = this.#steps + 1;
    const { runsAhead, pages, shape: { maxContext } } = this.#decoder;
    if (
      !runsAhead || !step || this.#atOnce > 1 || this.#speculation ||
      next % this.#expertSteps === 0
    ) return;
    const state = { slots: this.#slots, waiting: this.#waiting, pages };
    const ahead = stepAhead(state, step.growing, maxContext);
    if (!ahead) return;
    this.#steps = next;
    this.#run(ahead, { experts: false, fed: ahead.fed });
  }

  /** Puts a step in flight. */
  #run(
    step: StepTokens,
    { experts, fed }: {
      readonly experts: boolean;
      readonly fed?: readonly number[];
    },
  ): void {
    const { tokens, ends, prompted } = step;
    const growing = this.#growingOf(step);
    const ran = this.#speculation?.ran;
    const sequences = this.#slots;
    const next = this.#decoder.next(tokens, ends, {
      needed: neededBy(growing),
      normalize: growing.some(({ options }) => options.logprobs !== undefined),
      experts,
      onHidden: ran &&
        ((hidden) => ran({ tokens, prompted, sequences, hidden })),
      fed,
    });
    // An earlier step may fail first.
    next.catch(() => {});
    const isAhead = fed !== undefined;
    const following = 0;
    this.#flight.push({ ...step, growing, experts, isAhead, following, next });
  }

  /** Drafts tokens of decoding sequences, where neither their rows nor their pages displace others. */
  async #draft(state: BatchState<Growing>): Promise<void> {
    if (!this.#speculation || this.#speculation.rests()) return;
    const { pages, shape: { maxTokens, maxContext, maxRows } } = this.#decoder;
    const decoding = decodingOf(state);
    if (decoding.length === 0) return;
    const { running } = this;
    const needed = running * (pages?.size ?? 0) + this.#speculation.max;
    const total = Math.min(
      maxRows - running,
      // A step has a prompt token, too.
      maxTokens - 1 - sum(decoding.map(unfedOf)),
    );
    await this.#speculation.propose(decoding, {
      total,
      replays: this.#decoder.shape.recurrent,
      roomOf: ({ slot, sequence }) =>
        sequence.replays || pages && !pages.hasRoom(slot, needed)
          ? 0
          : Math.min(
            sequence.options.maxNewTokens - sequence.tokens.length - 1,
            maxContext - lengthOf(sequence),
          ),
    });
  }

  /**
   * Samples after the last token of a sequence and its draft, up to the first difference. Returns the number of tokens.
   */
  async #choose(
    slot: number,
    candidates: readonly Candidates[],
  ): Promise<number> {
    const sequence = this.#slots[slot]!;
    const { draft = [], tokens } = sequence;
    const before = tokens.length;
    for (const [i, each] of candidates.entries()) {
      if (sequence.cancelled) break;
      await grow(sequence, each);
      sequence.ending ??= endingOf(sequence, this.#decoder.shape.maxContext);
      if (sequence.ending || tokens.at(-1) !== draft[i]) break;
    }
    const chosen = tokens.length - before;
    sequence.replays = false;
    if (draft.length > 0) {
      const isDrafted = tokens.at(-1) === draft[chosen - 1];
      this.#speculation!.verified(sequence, {
        drafted: draft.length,
        accepted: isDrafted ? chosen : Math.max(0, chosen - 1),
      });
      sequence.draft = [];
      const fed = lengthOf(sequence) - 1;
      sequence.fed = this.#decoder.pages?.keep(slot, fed) ?? fed;
      sequence.replays = sequence.fed < fed;
    }
    if (sequence.ending) {
      this.#free(slot);
      sequence.options.onEnd?.(sequence.ending);
    }
    return chosen;
  }

  /** Ends a sequence that is alone and still has too few pages. Undefined if there is none. */
  #endStuck(): BatchStep | undefined {
    const slot = this.#slots.findIndex((sequence) => sequence);
    const sequence = this.#slots[slot] ?? this.#waiting.shift();
    if (!sequence) return undefined;
    if (slot >= 0) this.#free(slot);
    sequence.ending = "context";
    sequence.options.onEnd?.(sequence.ending);
    return { tokens: 0, prompted: 0, chosen: 0, following: 0 };
  }

  #removeCancelled(): void {
    this.#slots.forEach((sequence, slot) => {
      if (sequence?.cancelled) this.#free(slot);
    });
    for (let i = this.#waiting.length - 1; i >= 0; i--) {
      if (this.#waiting[i]!.cancelled) this.#waiting.splice(i, 1);
    }
  }

  #free(slot: number): void {
    this.#slots[slot] = undefined;
    const last = this.#waiting.length + this.running === 0;
    if (!last || !this.#retainsLast) this.#decoder.pages?.keep(slot, 0);
  }
}

function checkSampling(decoder: Decoder, options: SamplingOptions): void {
  const { gives, vocabulary } = decoder.shape;
  if (typeof gives === "string" || gives.logits) return;
  const needed = Math.min(candidatesOf(options) ?? vocabulary, vocabulary);
  if (needed <= gives.candidates) return;
  throw new DataError(
    `Cannot draw from the best ${needed} tokens: the plan returns only the best ${gives.candidates}. Compile it for more candidates`,
  );
}

function checkPrompt(
  decoder: Decoder,
  prompt: readonly number[],
  name: string,
): void {
  if (prompt.length === 0) {
    throw new DataError(
      `Cannot generate from ${name}: it has no tokens. Give it some text`,
    );
  }
  if (prompt.length > decoder.shape.maxContext) {
    throw new DataError(
      `Cannot generate from ${name}: it has ${prompt.length} tokens, and the context has ${decoder.shape.maxContext}. Shorten it or raise --max-context`,
    );
  }
  checkTokens(
    prompt,
    decoder.shape.vocabulary,
    (at) => `${name}, token ${at + 1}`,
  );
}
