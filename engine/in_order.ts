/** Actions that run at the same time, with results in order. */

/**
 * Runs at most `atOnce` actions at a time, and yields their results in the order of the actions. An action is requested
 * when one may start. A failure is thrown in its turn.
 */
export async function* inOrder<R>(
  actions: AsyncIterable<() => Promise<R>>,
  atOnce: number,
): AsyncGenerator<R> {
  const running: Promise<R>[] = [];
  for await (const action of actions) {
    const started = action();
    // An earlier failure may end the loop.
    started.catch(() => {});
    running.push(started);
    if (running.length >= atOnce) yield await running.shift()!;
  }
  for (const started of running) yield await started;
}
