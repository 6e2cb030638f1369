/** Probability that a drafted token is accepted, by kind of draft: estimated for all sequences, and for each one. */

/** A kind of draft, with an assumed probability that its first token is accepted. */
export interface DraftKind {
  readonly name: string;
  readonly assumed: number;
}

/** Weight of the assumed probability in the estimate for all sequences, and of that in the estimate for one. */
const PRIOR_WEIGHT = 2;

/** Each token that is not drafted multiplies the counts by this factor, so that drafts are tried again. */
const FORGOTTEN = { all: 0.995, one: 0.96 } as const;

/** Maximum weight of past tokens. */
const MAX_WEIGHT = 32;

interface Counts {
  tried: number;
  accepted: number;
}

/** Estimates of one group of sequences. */
export class Acceptance {
  readonly #all = new Map<string, Counts>();
  readonly #one = new WeakMap<object, Map<string, Counts>>();

  /** The probability that the first token of a draft is accepted, given that those before it are. */
  of(sequence: object, kind: DraftKind): number {
    const all = estimate(countsOf(this.#all, kind), kind.assumed);
    return estimate(countsOf(this.#countsOf(sequence), kind), all);
  }

  /** Records a verified draft. */
  verified(
    sequence: object,
    kind: DraftKind,
    { drafted, accepted }: {
      readonly drafted: number;
      readonly accepted: number;
    },
  ): void {
    // Tokens after a rejected one are not tried.
    const tried = Math.min(drafted, accepted + 1);
    for (const group of [this.#all, this.#countsOf(sequence)]) {
      const counts = countsOf(group, kind);
      const left = Math.min(1, MAX_WEIGHT / (counts.tried + tried));
      counts.tried = (counts.tried + tried) * left;
      counts.accepted = (counts.accepted + accepted) * left;
    }
  }

  /** Records that a draft was not made, because it does not pay. */
  skipped(sequence: object, kind: DraftKind): void {
    forget(countsOf(this.#all, kind), FORGOTTEN.all);
    forget(countsOf(this.#countsOf(sequence), kind), FORGOTTEN.one);
  }

  #countsOf(sequence: object): Map<string, Counts> {
    const known = this.#one.get(sequence) ?? new Map<string, Counts>();
    this.#one.set(sequence, known);
    return known;
  }
}

function countsOf(group: Map<string, Counts>, kind: DraftKind): Counts {
  const known = group.get(kind.name) ?? { tried: 0, accepted: 0 };
  group.set(kind.name, known);
  return known;
}

function estimate({ tried, accepted }: Counts, prior: number): number {
  return (accepted + PRIOR_WEIGHT * prior) / (tried + PRIOR_WEIGHT);
}

function forget(counts: Counts, left: number): void {
  counts.tried *= left;
  counts.accepted *= left;
}
