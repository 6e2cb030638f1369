/** Time of a decode step, as a linear function of its tokens, from measured steps. */

/** Weight of a step relative to the next one. */
const DECAY = 0.95;

/** Number of first steps that are not measured, because they compile code. */
const WARM_UP = 4;

/** Assumed part, and how fast the measured one is forgotten in steps that do not show it. */
const PART = { assumed: 0.15, forgotten: 0.02 } as const;

/** Smallest variance of the number of tokens that shows the slope. */
const SPREAD = 0.2;

/** A linear fit by least squares, with decaying weights. */
export class StepCost {
  #skipped = 0;
  #weight = 0;
  /** Weighted sums of tokens, their squares, milliseconds, and products. */
  #tokens = 0;
  #squares = 0;
  #ms = 0;
  #products = 0;
  /** Part of a token in the time of a step of one token. */
  #part: number = PART.assumed;

  /** Adds a measured step. */
  add(tokens: number, ms: number): void {
    if (this.#skipped < WARM_UP) {
      this.#skipped++;
      return;
    }
    // One slow step, such as a garbage collection, says little about others.
    const measured = this.#weight > 0 ? Math.min(ms, 2 * this.of(tokens)) : ms;
    this.#weight = DECAY * this.#weight + 1;
    this.#tokens = DECAY * this.#tokens + tokens;
    this.#squares = DECAY * this.#squares + tokens ** 2;
    this.#ms = DECAY * this.#ms + measured;
    this.#products = DECAY * this.#products + tokens * measured;
    this.#fit();
  }

  #fit(): void {
    const [n, t] = [this.#tokens / this.#weight, this.#ms / this.#weight];
    const variance = this.#squares / this.#weight - n ** 2;
    if (variance < SPREAD) {
      this.#part += PART.forgotten * (PART.assumed - this.#part);
      return;
    }
    const slope = (this.#products / this.#weight - n * t) / variance;
    const each = Math.min(Math.max(slope, 0), t / n);
    const one = t - each * (n - 1);
    this.#part = one > 0 ? each / one : 1;
  }

  /** Time of a step relative to that of one token. */
  relative(tokens: number): number {
    return 1 + this.#part * (tokens - 1);
  }

  /** Time of a step in milliseconds. Before the first measurement, it is relative. */
  of(tokens: number): number {
    if (this.#weight === 0) return this.relative(tokens);
    return this.#ms / this.#weight * this.relative(tokens) /
      this.relative(this.#tokens / this.#weight);
  }

  /** Whether any step was measured. */
  get isMeasured(): boolean {
    return this.#weight > 0;
  }
}
