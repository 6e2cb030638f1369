/** Parallel requests. */

/**
 * Applies an action to all items, `count` at a time. Rejects with the first error after all running actions have ended.
 * Actions can check whether another one has failed.
 */
export async function inParallel<T>(
  items: readonly T[],
  count: number,
  action: (item: T, stopped: () => boolean) => Promise<void>,
): Promise<void> {
  const waiting = items.values();
  const errors: unknown[] = [];
  const stopped = () => errors.length > 0;
  const work = async (): Promise<void> => {
    for (const item of waiting) {
      if (stopped()) return;
      await action(item, stopped).catch((error) => errors.push(error));
    }
  };
  await Promise.all(Array.from({ length: count }, work));
  if (errors.length > 0) throw errors[0];
}
