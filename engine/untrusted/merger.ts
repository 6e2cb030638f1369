/** Merges calls of a sandbox. */

/** Merges calls that arrive while others are executed into one call. */
export function createMerger<T, R>(
  action: (all: readonly T[]) => Promise<readonly R[]>,
): (one: T) => Promise<R> {
  interface Waiting {
    readonly one: T;
    resolve(result: R): void;
    reject(error: unknown): void;
  }
  let waiting: Waiting[] = [];
  let running = false;
  const run = async () => {
    running = true;
    while (waiting.length > 0) {
      const now = waiting;
      waiting = [];
      try {
        const results = await action(now.map(({ one }) => one));
        now.forEach(({ resolve }, i) => resolve(results[i]!));
      } catch (error) {
        for (const { reject } of now) reject(error);
      }
    }
    running = false;
  };
  return (one) =>
    new Promise((resolve, reject) => {
      waiting.push({ one, resolve, reject });
      // Calls in the same turn are batched.
      if (!running) queueMicrotask(() => running || void run());
    });
}
