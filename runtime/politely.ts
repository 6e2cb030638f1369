/**
 * Waiting for the GPU without spinning a core. The only file of the runtime that wraps `setImmediate`, for as short as it
 * needs, and only where Node's binding to WebGPU is used.
 */

/** Every instance of the binding. Its poller keeps a raw pointer to it, so none may ever be collected. */
const instances: GPU[] = [];

/** Keep an instance of Node's binding for as long as the process lives. */
export function keepInstance(gpu: GPU): void {
  instances.push(gpu);
}

/** Await a promise of the GPU without spinning a core. */
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

/** Polls made at full speed before a wait backs off to timers: about 3 ms. */
const EAGER_POLLS = 100;
const immediately = globalThis.setImmediate;
let waiting = 0;
let polls = 0;

/**
 * The binding polls by `setImmediate` for as long as any promise is pending, which burns a core. Its callbacks are
 * native functions, so everyone else's immediates stay as they were.
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
