/** Worker threads of browsers. */

import type { PoolWorker, WorkerEvents } from "../runtime/cpu/pool.ts";

/** What browsers call `Worker`; Node's types do not have it. */
interface WebWorker {
  onmessage: (event: { readonly data: unknown }) => void;
  onerror: (event: { readonly message: string }) => void;
  postMessage(message: object): void;
  terminate(): void;
}

const { Worker } = globalThis as unknown as {
  readonly Worker: new (url: string) => WebWorker;
};

/** Start a thread from a blob, so that there is no script to be served. */
export function startWebWorker(
  program: string,
  on: WorkerEvents,
): PoolWorker {
  const script = new Blob([`const port = self;${program}`], {
    type: "text/javascript",
  });
  const url = URL.createObjectURL(script);
  const worker = new Worker(url);
  worker.onmessage = ({ data }) => on.message(data);
  worker.onerror = ({ message }) => on.failure(message);
  return {
    postMessage: (message) => worker.postMessage(message),
    hold: () => {},
    terminate: () => {
      worker.terminate();
      URL.revokeObjectURL(url);
      return Promise.resolve();
    },
  };
}
