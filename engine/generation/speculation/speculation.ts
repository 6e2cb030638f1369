/**
 * Lossless speculation (Leviathan et al., 2023): a step also feeds drafted tokens of a sequence, and samples after each
 * of them while the sampled tokens are the drafted ones. The logits of a token have the same bits however many are
 * computed together, and each sampled token takes the same random numbers, so the new tokens are those without it.
 */

import { Acceptance, type DraftKind } from "./acceptance.ts";
import type { PackedTokens } from "../packing.ts";
import { StepCost } from "./step_cost.ts";

/** A sequence with drafted tokens. */
export interface Drafted {
  readonly prompt: readonly number[];
  /** New tokens. */
  readonly tokens: readonly number[];
  /** Tokens that are expected to follow. */
  draft?: readonly number[];
}

/** A step that the model has run. */
export interface RanStep<S extends Drafted = Drafted> {
  readonly tokens: PackedTokens;
  /** Number of prompt tokens among them. */
  readonly prompted: number;
  /** The sequence of each slot. */
  readonly sequences: readonly (S | undefined)[];
  /** f32 [token, embed]: the rows before the output matrix. */
  readonly hidden: Float32Array;
}

/** Proposes tokens. */
export interface Drafter {
  /** Receives each step of the model, if it reads hidden states, before new tokens are sampled. */
  ran?(step: RanStep): Promise<void>;
  /** Kind of the next draft of a sequence, for its acceptance; undefined if there is none. */
  kindOf(sequence: Drafted): DraftKind | undefined;
  /** Drafts at most `count` tokens of each sequence. */
  draft(
    wanted: readonly { readonly sequence: Drafted; readonly count: number }[],
  ): Promise<readonly (readonly number[])[]>;
}

/** Options of speculation. */
export interface SpeculationOptions {
  /** Maximum drafted tokens per sequence and step. */
  readonly max: number;
  readonly drafter: Drafter;
  /** A clock in milliseconds. Without it, costs are assumed; ranks in several processes then decide equally. */
  readonly now?: (() => number) | undefined;
}

/** Results of speculation. */
export interface SpeculationStats {
  /** Drafted tokens, and accepted ones among them. */
  readonly drafted: number;
  readonly accepted: number;
  /**
   * Time of decode steps without drafts, estimated from measured steps, divided by their time. Absent without a clock.
   */
  readonly gain?: number;
}

/** A step, measured. */
interface Measured {
  /** Number of fed tokens, and of prompt tokens among them. */
  readonly tokens: number;
  readonly prompted: number;
  /** Sequences with a new token, and new tokens. */
  readonly sequences: number;
  readonly chosen: number;
}

/** The draft of sequences without one. */
const NONE: readonly number[] = [];

/** Maximum time per new token with drafts, relative to that without. */
const WORTH = 0.95;

/** Maximum estimated probability of acceptance. */
const MAX_ACCEPTANCE = 0.999;

/** Logarithms of minimum probabilities of accepted tokens, one of which is chosen for each step. */
const LOGARITHMS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1].map(Math.log);

/** Weight of a measurement in the time of drafting. */
const DRAFT_WEIGHT = 1 / 8;

/** Number of steps whose drafts do not pay, after which they are tried again: at first, and at most. */
const PAUSE = { first: 64, max: 1024 } as const;

/** After this many steps without drafts, only one of some steps looks for them and is measured. */
const REST = { after: 32, every: 4 } as const;

/** A sequence with a possible draft. */
interface Drafting {
  readonly sequence: Drafted;
  readonly kind: DraftKind;
  /** Maximum number of tokens. */
  readonly max: number;
  /** Probability that a token is accepted if those before it are, and its logarithm. */
  readonly each: number;
  readonly log: number;
}

/** Decides which tokens are drafted, and counts accepted ones. */
export class Speculation {
  /** Maximum drafted tokens per sequence and step. */
  readonly max: number;
  /** Receives each step of the model with its hidden states; undefined if drafts do not depend on them. */
  readonly ran: ((step: RanStep) => Promise<void>) | undefined;
  readonly #drafter: Drafter;
  readonly #now: (() => number) | undefined;
  readonly #acceptance = new Acceptance();
  readonly #cost = new StepCost();
  readonly #kinds = new WeakMap<Drafted, DraftKind>();
  #drafted = 0;
  #accepted = 0;
  /** Milliseconds of drafting a token. */
  #draftMs = 0;
  #pause: number = PAUSE.first;
  #refusals = 0;
  /** Start of the step, and milliseconds of its drafts. */
  #begun = 0;
  #draftingMs = 0;
  /** Number of steps since the last drafts, and whether the next step is not measured. */
  #undrafted = 0;
  #rests = false;
  /** Measured time of decode steps, and estimated time without drafts. */
  #with = 0;
  #without = 0;

  constructor({ max, drafter, now }: SpeculationOptions) {
    this.max = max;
    this.ran = drafter.ran?.bind(drafter);
    this.#drafter = drafter;
    this.#now = now;
  }

  /** Results so far. */
  get stats(): SpeculationStats {
    return {
      drafted: this.#drafted,
      accepted: this.#accepted,
      ...this.#with > 0 ? { gain: this.#without / this.#with } : {},
    };
  }

  /** Starts a step. Returns whether it makes no drafts, because many steps before it had none. */
  rests(): boolean {
    const { after, every } = REST;
    this.#rests = ++this.#undrafted > after && this.#undrafted % every > 0;
    // The time of the step includes looking for drafts.
    if (!this.#rests) this.#begun = this.#now?.() ?? 0;
    return this.#rests;
  }

  /** Sets the drafts of decoding sequences: at most `roomOf` tokens of each, and `total` of all. */
  async propose<S extends { readonly sequence: Drafted }>(
    sequences: readonly S[],
    { roomOf, total, replays }: {
      readonly roomOf: (one: S) => number;
      readonly total: number;
      /** Whether the accepted tokens of a draft are fed again if another one is rejected. */
      readonly replays: boolean;
    },
  ): Promise<void> {
    const drafting: Drafting[] = [];
    for (const one of sequences) {
      const { sequence } = one;
      sequence.draft = NONE;
      const kind = this.#drafter.kindOf(sequence);
      if (kind === undefined) continue;
      const max = Math.min(this.max, roomOf(one));
      if (max <= 0) continue;
      const each = Math.min(
        this.#acceptance.of(sequence, kind),
        MAX_ACCEPTANCE,
      );
      drafting.push({ sequence, kind, max, log: Math.log(each), each });
    }
    if (drafting.length === 0) return;
    const counts = this.#worth(drafting, {
      sequences: sequences.length,
      total,
      replays,
    });
    const wanted = drafting.flatMap(({ sequence, kind }, i) => {
      if (counts[i]! > 0) {
        this.#kinds.set(sequence, kind);
        return [{ sequence, count: counts[i]! }];
      }
      this.#acceptance.skipped(sequence, kind);
      return [];
    });
    if (wanted.length === 0) return this.#refused(sequences.length);
    const begun = this.#now?.() ?? 0;
    const drafts = await this.#drafter.draft(wanted);
    const ms = (this.#now?.() ?? 0) - begun;
    let made = 0;
    wanted.forEach(({ sequence }, i) => {
      sequence.draft = drafts[i]!;
      made += drafts[i]!.length;
    });
    this.#draftingMs = ms;
    if (made === 0) return;
    this.#undrafted = 0;
    this.#draftMs += DRAFT_WEIGHT * (ms / made - this.#draftMs);
    // Drafts that are made despite known costs pay.
    if (this.#cost.knows(sequences.length + made)) this.#pause = PAUSE.first;
  }

  /** Records a step without drafts because of their cost. It is measured again after some of these. */
  #refused(sequences: number): void {
    this.#refusals++;
    if (this.#refusals < this.#pause) return;
    this.#refusals = 0;
    this.#pause = Math.min(2 * this.#pause, PAUSE.max);
    this.#draftMs = 0;
    this.#cost.forgetAbove(sequences);
  }

  /**
   * The numbers of drafted tokens with the largest expected number of new tokens per time: all tokens are drafted that
   * are accepted with at least some probability.
   */
  #worth(
    drafting: readonly Drafting[],
    { sequences, total, replays }: {
      readonly sequences: number;
      readonly total: number;
      readonly replays: boolean;
    },
  ): readonly number[] {
    const draftMs = this.#cost.isMeasured ? this.#draftMs : 0;
    let best = new Array<number>(drafting.length).fill(0);
    let min = this.#cost.of(sequences) * WORTH / sequences;
    let before = 0;
    for (const logarithm of LOGARITHMS) {
      let [left, tokens, replayed] = [total, sequences, 0];
      const counts: number[] = [];
      for (const { max, log, each } of drafting) {
        const likely = Math.floor(logarithm / log);
        const count = Math.max(0, Math.min(max, left, likely));
        counts.push(count);
        left -= count;
        let [accepted, more] = [1, 0];
        for (let n = 0; n < count; n++) {
          accepted *= each;
          more += accepted;
        }
        tokens += more;
        if (replays && count > 0) replayed += (1 - accepted) * (1 + more);
      }
      const fed = total - left;
      // As many drafts as for the previous probability, and none of them likelier.
      if (fed === before) continue;
      before = fed;
      const ms = this.#cost.of(sequences + fed) + fed * draftMs +
        this.#cost.of(sequences + replayed) - this.#cost.of(sequences);
      if (ms / tokens > min) continue;
      min = ms / tokens;
      best = counts;
    }
    return best;
  }

  /** Records the fed draft of a sequence, and how many of its tokens were accepted. */
  verified(
    sequence: Drafted,
    { drafted, accepted }: {
      readonly drafted: number;
      readonly accepted: number;
    },
  ): void {
    this.#drafted += drafted;
    this.#accepted += accepted;
    const kind = this.#kinds.get(sequence)!;
    this.#acceptance.verified(sequence, kind, { drafted, accepted });
  }

  /** Ends the measurement of a step. Steps with prompt tokens do not count. */
  end({ tokens, prompted, sequences, chosen }: Measured): void {
    const draftMs = this.#draftingMs;
    this.#draftingMs = 0;
    if (!this.#now || this.#rests || prompted > 0 || sequences === 0) return;
    const ms = this.#now() - this.#begun;
    this.#cost.add(tokens, ms - draftMs);
    if (!this.#cost.isMeasured) return;
    this.#with += ms;
    if (tokens === sequences) {
      this.#without += ms;
      return;
    }
    const relative = this.#cost.of(sequences) / this.#cost.of(tokens);
    this.#without += ms * chosen / sequences * relative;
  }
}
