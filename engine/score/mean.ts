/** Mean and standard error by Welford's recurrence. */

/** A mean of `count` numbers. */
export interface Mean {
  readonly count: number;
  readonly mean: number;
  /** Standard error, for independent numbers. */
  readonly error: number;
  readonly largest: number;
}

/** Numbers that are added one by one. */
export interface Sampled {
  add(value: number): void;
  mean(): Mean;
}

/** No numbers. */
export function sampled(): Sampled {
  let [count, mean, squares, largest] = [0, 0, 0, -Infinity];
  return {
    add: (value) => {
      count++;
      const difference = value - mean;
      mean += difference / count;
      squares += difference * (value - mean);
      if (value > largest) largest = value;
    },
    mean: () => ({
      count,
      mean,
      error: count > 1 ? Math.sqrt(squares / (count - 1) / count) : 0,
      largest,
    }),
  };
}
