/**
 * Waits for the GPU without spinning a core. The only file of the runtime that wraps `setImmediate`, temporarily, and
 * only with Node's WebGPU binding.
 */

/** Every instance of the binding. Its poller has a raw pointer to it, so instances must not be collected. */
const instances: GPU[] = [];

/** Retains an instance of Node's binding for the lifetime of the process. */
export function keepInstance(gpu: GPU): void {
  instances.push(gpu);
}

/** Awaits a promise of the GPU without spinning a core. */
export async function politely<T>(promise: Promise<T>): Promise<T> {
  if (instances.length === 0) return await promise;
  waiting++;
  if (waiting === 1) slowDown();
  try {
    return await promise;
  } finally {
    waiting--;
    if (waiting === 0) globalThis.setImmediate = immediately;
  }
}

/** Number of polls at full speed before a wait backs off to timers: about 3 ms. */
const EAGER_POLLS = 100;
const immediately = globalThis.setImmediate;
let waiting = 0;
let polls = 0;

/**
 * The binding polls by `setImmediate` while any promise is pending, which uses a full core. Its callbacks are native
 * functions; other immediates are not affected.
 */
function slowDown(): void {
  polls = 0;
  const slowed = (callback: () => void, ...args: []) => {
    if (!Function.prototype.toString.call(callback).includes("[native code]")) {
      return immediately(callback, ...args);
    }
    return ++polls < EAGER_POLLS
      ? immediately(callback, ...args)
      : setTimeout(callback, 1, ...args);
  };
  globalThis.setImmediate = slowed as typeof setImmediate;
}
