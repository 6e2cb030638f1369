/** Worker threads of browsers. */

import type { PoolWorker, WorkerEvents } from "../runtime/cpu/pool.ts";

/** The browser's `Worker` type, which is missing in Node's types. */
interface WebWorker {
  onmessage: (event: { readonly data: unknown }) => void;
  onerror: (event: { readonly message: string }) => void;
  postMessage(message: object): void;
  terminate(): void;
}

const { Worker } = globalThis as unknown as {
  readonly Worker: new (url: string) => WebWorker;
};

/** Starts a thread from a blob, so no script file has to be served. */
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
