/** Time of a decode step by its number of tokens, from measured steps. */

/** Assumed time of a further token, relative to a step of one token. */
const ASSUMED = 0.25;

/** The first step of a size may compile code and is not measured. Then some steps of that size are measured. */
const [WARM_UP, MEASURED] = [1, 2] as const;

/**
 * Minimum weights of steps in the mean of their size: slower ones, which other work on the machine may delay, count
 * less. Maximum time relative to this mean.
 */
const [FASTER, SLOWER, OUTLIER] = [1 / 4, 1 / 16, 2] as const;

/**
 * Maximum number of tokens with a mean of their own. Larger sizes share means of half an octave, to be known sooner.
 */
const EXACT = 8;

/** Mean of steps of similar sizes. */
class Mean {
  #count = -WARM_UP;
  tokens = 0;
  ms = 0;

  add(tokens: number, ms: number): void {
    this.#count++;
    if (this.#count <= 0) return;
    const least = ms < this.ms ? FASTER : SLOWER;
    const weight = Math.max(least, 1 / this.#count);
    // One slow step, such as a garbage collection, says little about others.
    const max = this.#count === 1 ? Infinity : OUTLIER * this.ms;
    this.tokens += weight * (tokens - this.tokens);
    this.ms += weight * (Math.min(ms, max) - this.ms);
  }

  get isKnown(): boolean {
    return this.#count >= MEASURED;
  }
}

/** Measured times of steps. */
export class StepCost {
  /** By size, ascending. */
  #means: (readonly [size: number, mean: Mean])[] = [];

  /** Adds a measured step. */
  add(tokens: number, ms: number): void {
    const size = sizeOf(tokens);
    let mean = this.#means.find(([known]) => known === size)?.[1];
    if (!mean) {
      mean = new Mean();
      this.#means.push([size, mean]);
      this.#means.sort(([a], [b]) => a - b);
    }
    mean.add(tokens, ms);
  }

  /** Forgets the times of steps with more tokens. */
  forgetAbove(tokens: number): void {
    this.#means = this.#means.filter(([size]) => size <= sizeOf(tokens));
  }

  /** Whether steps of a number of tokens were measured. */
  knows(tokens: number): boolean {
    const size = sizeOf(tokens);
    return this.#means.some(([known, mean]) => known === size && mean.isKnown);
  }

  /** Whether any step was measured: times are then in milliseconds, otherwise relative to a step of one token. */
  get isMeasured(): boolean {
    return this.#means.some(([, { isKnown }]) => isKnown);
  }

  /**
   * Time of a step: interpolated between measured ones; larger ones are assumed to be cheap, so that they are tried.
   */
  of(tokens: number): number {
    let below: Mean | undefined;
    for (const [, mean] of this.#means) {
      if (!mean.isKnown) continue;
      if (mean.tokens <= tokens) below = mean;
      else if (!below) return mean.ms * assumed(tokens) / assumed(mean.tokens);
      else {
        const part = (tokens - below.tokens) / (mean.tokens - below.tokens);
        return below.ms + part * (mean.ms - below.ms);
      }
    }
    return below
      ? below.ms * assumed(tokens) / assumed(below.tokens)
      : assumed(tokens);
  }
}

/** Assumed time of a step, relative to one of one token. */
function assumed(tokens: number): number {
  return 1 + ASSUMED * (tokens - 1);
}

function sizeOf(tokens: number): number {
  return tokens <= EXACT
    ? tokens
    : 2 ** (Math.round(2 * Math.log2(tokens)) / 2);
}
