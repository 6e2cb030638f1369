/**
 * Lossless speculation (Leviathan et al., 2023): a step also feeds drafted tokens of a sequence, and samples after each
 * of them while the sampled tokens are the drafted ones. The logits of a token have the same bits however many are
 * computed together, and each sampled token takes the same random numbers, so the new tokens are those without it.
 */

import { Acceptance, type DraftKind } from "./acceptance.ts";
import { StepCost } from "./step_cost.ts";

/** A sequence with drafted tokens. */
export interface Drafted {
  readonly prompt: readonly number[];
  /** New tokens. */
  readonly tokens: readonly number[];
  /** Tokens that are expected to follow. */
  draft?: readonly number[];
}

/** Proposes tokens. */
export interface Drafter {
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
  /** Time of decode steps without drafts, estimated from measured steps, divided by their time. Absent without a clock. */
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

/** Cost of a drafted token relative to its benefit, up to which it is fed. */
const WORTH = 0.9;

/** Maximum estimated probability of acceptance. */
const MAX_ACCEPTANCE = 0.999;

/** Weight of a measurement in the cost of drafting, and what remains of it at each step without drafts. */
const DRAFT_COST = { weight: 1 / 8, forgotten: 0.98 } as const;

/** Decides which tokens are drafted, and counts accepted ones. */
export class Speculation {
  /** Maximum drafted tokens per sequence and step. */
  readonly max: number;
  readonly #drafter: Drafter;
  readonly #now: (() => number) | undefined;
  readonly #acceptance = new Acceptance();
  readonly #cost = new StepCost();
  readonly #kinds = new WeakMap<Drafted, DraftKind>();
  #drafted = 0;
  #accepted = 0;
  /** Milliseconds of drafting a token. */
  #draftMs = 0;
  /** Start of the step, and milliseconds of its drafts. */
  #begun = 0;
  #draftingMs = 0;
  /** Measured time of decode steps, and estimated time without drafts. */
  #with = 0;
  #without = 0;

  constructor({ max, drafter, now }: SpeculationOptions) {
    this.max = max;
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

  /**
   * Sets the drafts of decoding sequences.
   *
   * @param room maximum drafted tokens of each sequence
   * @param total maximum drafted tokens of all
   */
  async propose(
    sequences: readonly { readonly sequence: Drafted; readonly room: number }[],
    total: number,
  ): Promise<void> {
    const wanted: { readonly sequence: Drafted; readonly count: number }[] = [];
    const min = this.#minProbability(sequences.length);
    let left = total;
    for (const { sequence, room } of sequences) {
      sequence.draft = [];
      const kind = this.#drafter.kindOf(sequence);
      const max = Math.min(this.max, room, left);
      if (kind === undefined || max <= 0) continue;
      const count = Math.min(max, this.#worth(sequence, kind, min));
      if (count === 0) {
        this.#acceptance.skipped(sequence, kind);
        continue;
      }
      this.#kinds.set(sequence, kind);
      wanted.push({ sequence, count });
      left -= count;
    }
    if (wanted.length === 0) {
      this.#draftMs *= DRAFT_COST.forgotten;
      return;
    }
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
    this.#draftMs += DRAFT_COST.weight * (ms / made - this.#draftMs);
  }

  /** The minimum probability of acceptance with which a drafted token pays. */
  #minProbability(sequences: number): number {
    const without = this.#cost.of(sequences);
    const more = this.#cost.of(sequences + 1) - without;
    const each = without / sequences;
    const draft = this.#cost.isMeasured ? this.#draftMs : 0;
    return each > 0 ? (more + draft) / (WORTH * each) : 0;
  }

  /** Number of drafted tokens that pay. */
  #worth(sequence: Drafted, kind: DraftKind, min: number): number {
    const each = Math.min(this.#acceptance.of(sequence, kind), MAX_ACCEPTANCE);
    if (min <= 0) return Infinity;
    return Math.max(0, Math.floor(Math.log(min) / Math.log(each)));
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

  /** Starts the measurement of a step. */
  begin(): void {
    this.#begun = this.#now?.() ?? 0;
  }

  /** Ends the measurement of a step. Steps with prompt tokens do not count. */
  end({ tokens, prompted, sequences, chosen }: Measured): void {
    const draftMs = this.#draftingMs;
    this.#draftingMs = 0;
    if (!this.#now || prompted > 0 || sequences === 0) return;
    const ms = this.#now() - this.#begun;
    this.#cost.add(tokens, ms);
    if (!this.#cost.isMeasured) return;
    this.#with += ms + draftMs;
    this.#without += ms * chosen / sequences *
      this.#cost.relative(sequences) / this.#cost.relative(tokens);
  }
}
