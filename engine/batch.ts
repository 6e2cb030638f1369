/**
 * Continuous batching: each step feeds one token of every decoding sequence, with speculation also drafted ones, and
 * prompt tokens up to the limit of the step. On pipeline stages, several steps are in flight, each with a part of the
 * decoding sequences. Sequences are added and cancelled between steps and are independent.
 */

import { DataError } from "../spec/errors.ts";
import { sum } from "../spec/sum.ts";
import { stepAhead } from "./ahead.ts";
import type { Decoder } from "./decoder.ts";
import { checkTokens } from "./packing.ts";
import { penalize } from "./penalties.ts";
import { type LogitsHash, logitsHash } from "./receipt/receipt.ts";
import {
  allowedOf,
  type Candidates,
  candidatesOf,
  type Logprobs,
  logprobsOf,
  randomNumbers,
  type RoutedExperts,
  sample,
  type SamplingOptions,
} from "./sampling.ts";
import {
  admit,
  type BatchState,
  decodingOf,
  lengthOf,
  nextStep,
  type Scheduled,
  type Slots,
  type StepTokens,
  unfedOf,
} from "./schedule.ts";
import type { Speculation } from "./speculation/speculation.ts";

/** Data of a new token, if it was requested. */
export interface TokenRecord {
  /** The hash of the logits before the token, with `receipt`, before some tokens. */
  readonly hash?: LogitsHash | undefined;
  /** The experts of the token before. */
  readonly experts?: RoutedExperts | undefined;
}

/** Options of one sequence. */
export interface SequenceOptions extends SamplingOptions {
  /** Maximum new tokens. */
  readonly maxNewTokens: number;
  /** Tokens that end the sequence. */
  readonly stop: ReadonlySet<number>;
  /** Random stream of the seed. Default: the index of the sequence in its batch. */
  readonly stream?: number;
  /** First new tokens, given instead of sampled; they count as new tokens. Default: none. */
  readonly forced?: readonly number[];
  /** Whether logits are hashed for a receipt. Default: false. */
  readonly receipt?: boolean;
  /** Called with each new token. "stop" ends the sequence. With several processes, all must return the same. */
  readonly onToken?: (
    token: number,
    logprobs: Logprobs | undefined,
    record: TokenRecord,
  ) => void | "stop" | Promise<void | "stop">;
  /** Whether `onToken` receives the experts of the token before each new one. Default: false. */
  readonly experts?: boolean;
  /** Called when the sequence ends, but not when it is cancelled. */
  readonly onEnd?: (ending: Ending) => void;
}

/** Why a sequence ended. */
export type Ending = "stop token" | "stop text" | "length" | "context";

/** A sequence of a batch. */
export interface BatchSequence {
  readonly prompt: readonly number[];
  /** New tokens, including a stop token. */
  readonly tokens: readonly number[];
  /** Log-probabilities of each new token, if requested. */
  readonly logprobs: readonly Logprobs[];
  /** Hashes of logits before some new tokens, for a receipt. */
  readonly hashes: readonly LogitsHash[];
  /** Undefined for a running or cancelled sequence. */
  readonly ending: Ending | undefined;
}

/** Result of a step. */
export interface BatchStep {
  /** Number of fed tokens, and of prompt tokens among them. */
  readonly tokens: number;
  readonly prompted: number;
  /** New tokens. */
  readonly chosen: number;
  /** Experts of the tokens before new ones, if they were read. */
  readonly experts?: readonly RoutedExperts[];
}

interface Growing extends Scheduled, BatchSequence {
  readonly tokens: number[];
  readonly logprobs: Logprobs[];
  readonly hashes: LogitsHash[];
  readonly options: SequenceOptions;
  readonly random: () => number;
  ending: Ending | undefined;
  cancelled: boolean;
}

/** A step in flight. */
interface StepInFlight extends StepTokens {
  /** The sequence of each of the `ends`. */
  readonly growing: readonly Growing[];
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
    const ahead = this.#startAhead();
    const step = this.#flight.shift();
    if (!step) return this.#endStuck();
    const { tokens, ends, growing, experts, prompted } = step;
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
    ahead?.growing.forEach(({ tokens }, i) => {
      const { sequence, position } = ahead.tokens;
      this.#decoder.pages?.know(sequence[i]!, position[i]!, tokens.at(-1)!);
    });
    const done = {
      tokens: tokens.ids.length,
      prompted,
      chosen,
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
    this.#run(step, { experts });
    return true;
  }

  /** Starts the step after the only one in flight, if the device can continue with its tokens. */
  #startAhead(): StepInFlight | undefined {
    const [step] = this.#flight;
    const next = this.#steps + 1;
    const { runsAhead, pages, shape: { maxContext } } = this.#decoder;
    if (
      !runsAhead || !step || this.#atOnce > 1 || this.#speculation ||
      next % this.#expertSteps === 0
    ) return undefined;
    const state = { slots: this.#slots, waiting: this.#waiting, pages };
    const ahead = stepAhead(state, step.growing, maxContext);
    if (!ahead) return undefined;
    this.#steps = next;
    return this.#run(ahead, { experts: false, fed: ahead.fed });
  }

  /** Puts a step in flight. */
  #run(
    { tokens, ends, prompted }: StepTokens,
    { experts, fed }: {
      readonly experts: boolean;
      readonly fed?: readonly number[];
    },
  ): StepInFlight {
    const growing = ends.map((end) => this.#slots[tokens.sequence[end]!]!);
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
    const step = { tokens, ends, prompted, growing, experts, next };
    this.#flight.push(step);
    return step;
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

  /** Samples after the last token of a sequence and its draft, up to the first difference. Returns the number of tokens. */
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
    return { tokens: 0, prompted: 0, chosen: 0 };
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

/** Number of best tokens that each sequence needs. Undefined: all. */
function neededBy(sequences: readonly Growing[]): number | undefined {
  let max = 0;
  for (const { options } of sequences) {
    const needed = options.receipt ? undefined : candidatesOf(options);
    if (needed === undefined) return undefined;
    max = Math.max(max, needed);
  }
  return max;
}

/** Chooses and reports the next token of a sequence. */
async function grow(
  sequence: Growing,
  candidates: Candidates,
): Promise<void> {
  const { tokens, random, logprobs, hashes, options } = sequence;
  const hash = options.receipt &&
    await logitsHash(candidates.logits, tokens.length);
  if (hash) hashes.push(hash);
  let token = options.forced?.[tokens.length];
  if (token === undefined) {
    const { grammar, stop } = options;
    const logits = penalize(candidates.logits, sequence, options);
    const allowed = await grammar?.allowed();
    const from = grammar
      ? allowedOf(logits, { allowed, options })
      : { ...candidates, logits };
    if (from.logits.length === 0) {
      sequence.ending = "stop text";
      return;
    }
    token = sample(from, { ...options, random });
    if (!stop.has(token)) grammar?.accept(token);
  }
  tokens.push(token);
  const known = options.logprobs === undefined
    ? undefined
    : logprobsOf(candidates, token, options);
  if (known) logprobs.push(known);
  const record = {
    hash: hash || undefined,
    experts: options.experts ? candidates.experts : undefined,
  };
  const stops = await options.onToken?.(token, known, record) === "stop";
  if (stops && !options.stop.has(token)) sequence.ending = "stop text";
}

function endingOf(
  sequence: Growing,
  maxContext: number,
): Ending | undefined {
  const { tokens, options } = sequence;
  const forced = tokens.length <= (options.forced?.length ?? 0);
  if (!forced && options.stop.has(tokens.at(-1)!)) return "stop token";
  if (tokens.length >= options.maxNewTokens) return "length";
  // Position of the new token.
  const position = lengthOf(sequence) - 1;
  return position >= maxContext ? "context" : undefined;
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
