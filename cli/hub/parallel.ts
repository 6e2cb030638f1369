/** Several requests at a time. */

/**
 * Does something with all items, `count` at a time. Rejects with the first error once all actions in flight have ended;
 * they can ask whether another has failed.
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
