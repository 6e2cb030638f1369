/** Changes of logits before sampling: penalties for repeated tokens, and biases. */

/** Options that change logits. */
export interface PenaltyOptions {
  /** Repetition penalty: logits of the last 64 tokens are divided by it if positive, else multiplied. Default: 1. */
  readonly repeatPenalty?: number;
  /** Presence penalty: subtracted from the logit of each generated token. Default: 0. */
  readonly presencePenalty?: number;
  /** Frequency penalty: subtracted from the logit of a token once per occurrence. Default: 0. */
  readonly frequencyPenalty?: number;
  /** Added to logits, by token. Default: none. */
  readonly bias?: ReadonlyMap<number, number>;
}

/** Number of last tokens for the repetition penalty. */
const PENALTY_TOKENS = 64;

/** Whether options change any logit. */
export function changesLogits(options: PenaltyOptions): boolean {
  const { repeatPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } =
    options;
  return repeatPenalty !== 1 || presencePenalty !== 0 ||
    frequencyPenalty !== 0 || (options.bias?.size ?? 0) > 0;
}

/** Logits of the entire vocabulary after the options, in f32; a copy if any changes. */
export function penalize(
  logits: Float32Array,
  { prompt, tokens }: {
    readonly prompt: readonly number[];
    /** Generated. */
    readonly tokens: readonly number[];
  },
  options: PenaltyOptions,
): Float32Array {
  if (!changesLogits(options)) return logits;
  const { repeatPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } =
    options;
  const changed = logits.slice();
  if (repeatPenalty !== 1) {
    const recent = [...prompt.slice(-PENALTY_TOKENS), ...tokens]
      .slice(-PENALTY_TOKENS);
    for (const token of new Set(recent)) {
      const logit = logits[token]!;
      changed[token] = logit > 0
        ? logit / repeatPenalty
        : logit * repeatPenalty;
    }
  }
  if (presencePenalty !== 0 || frequencyPenalty !== 0) {
    const counts = new Map<number, number>();
    for (const token of tokens) counts.set(token, (counts.get(token) ?? 0) + 1);
    for (const [token, count] of counts) {
      changed[token]! -= presencePenalty + frequencyPenalty * count;
    }
  }
  for (const [token, bias] of options.bias ?? []) changed[token]! += bias;
  return changed;
}
