/**
 * The loop of a server: steps of one batch, to which requests are added and from which they are cancelled at any time.
 */

import { Batch, type BatchStep } from "../generation/batch.ts";
import type { Decoder } from "../generation/decoder.ts";
import type { BatchSequence, SequenceOptions } from "../generation/sequence.ts";
import type { Speculation } from "../generation/speculation/speculation.ts";
import { createStepTimer, type StepTime } from "./step_times.ts";

/** Experts are counted in one of this many steps. */
const EXPERT_STEPS = 16;

/** Callbacks of a loop. */
export interface LoopOptions {
  /** Called after each step. */
  readonly onStep?: (step: BatchStep, time: StepTime) => void;
  /** Called if the loop fails, with the error. */
  readonly onFail?: (error: unknown) => void;
  /** Called after each period of so many milliseconds without sequences. */
  readonly idle?: {
    readonly ms: number;
    readonly action: () => Promise<void>;
  };
  /** Drafts tokens. Default: none are drafted. */
  readonly speculation?: Speculation | undefined;
  /** A clock in milliseconds. */
  readonly now: () => number;
}

/** Runs steps while there are sequences. */
export class BatchLoop {
  readonly #batch: Batch;
  readonly #options: LoopOptions;
  #looks: (() => void)[] = [];
  #wake: (() => void) | undefined;
  #reject: ((error: unknown) => void) | undefined;
  #closed = false;
  #failure: { readonly error: unknown } | undefined;

  constructor(decoder: Decoder, options: LoopOptions) {
    const { speculation } = options;
    this.#batch = new Batch(decoder, {
      expertSteps: EXPERT_STEPS,
      speculation,
    });
    this.#options = options;
  }

  /** Number of queued sequences. */
  get waiting(): number {
    return this.#batch.waiting;
  }

  /** Number of sequences in the caches. */
  get running(): number {
    return this.#batch.running;
  }

  /** Adds a sequence. Throws the error that ended the loop, and the errors of `Batch.add`. */
  add(prompt: readonly number[], options: SequenceOptions): BatchSequence {
    if (this.#failure) throw this.#failure.error;
    const sequence = this.#batch.add(prompt, options);
    this.#wake?.();
    return sequence;
  }

  /** Ends a sequence before the next step. */
  cancel(sequence: BatchSequence): void {
    this.#batch.cancel(sequence);
    this.#wake?.();
  }

  /** Calls an action between two steps, after cancelled sequences are removed. */
  look(action: () => void): void {
    this.#looks.push(action);
    this.#wake?.();
  }

  /** Runs until the loop is closed and no sequence is left. Rejects if a step fails, or as `fail` says. */
  async run(): Promise<void> {
    try {
      await Promise.race([
        this.#run(),
        new Promise<never>((_, reject) => this.#reject = reject),
      ]);
    } catch (error) {
      this.fail(error);
      throw error;
    }
  }

  /** Ends `run` and all sequences with an error, even within a step that never ends. */
  fail(error: unknown): void {
    if (this.#failure) return;
    this.#failure = { error };
    this.#options.onFail?.(error);
    this.#reject?.(error);
  }

  async #run(): Promise<void> {
    const { now, onStep } = this.#options;
    const timeOf = createStepTimer();
    while (!this.#failure) {
      const looks = this.#looks.splice(0);
      const begun = now();
      const step = await this.#batch.step();
      if (step) onStep?.(step, timeOf(step, { begun, ended: now() }));
      for (const look of looks) look();
      if (step) {
        // Lets the event loop handle messages.
        await new Promise((resolve) => setImmediate(resolve));
      } else if (this.#closed) return;
      else await this.#idle();
    }
  }

  /** Lets `run` return once no sequence is left. */
  close(): void {
    this.#closed = true;
    this.#wake?.();
  }

  async #idle(): Promise<void> {
    const { idle } = this.#options;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let slept = false;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (!idle) return;
      timer = setTimeout(() => {
        slept = true;
        resolve();
      }, idle.ms);
    });
    clearTimeout(timer);
    this.#wake = undefined;
    if (slept) await idle?.action();
  }
}
