/** Starts the thread that answers a server's requests. */

import { type MessagePort, Worker } from "node:worker_threads";
import { type FileSystem, type Grammars, openGrammars } from "../engine/mod.ts";
import type { LoopPort } from "../engine/server/mod.ts";
import { DataError, MachineError } from "../spec/mod.ts";
import { RUNNING_ROOT } from "../spec/running.ts";
import type {
  HttpData,
  HttpReport,
  HttpRequest,
  HttpSettings,
} from "./http_program.ts";

/** A thread that listens. */
export interface HttpThread {
  /** `http://HOST:PORT`. */
  readonly address: string;
  /** Rejects further requests. Resolves when none is in progress. */
  drain(): Promise<void>;
  /** Drains, closes all connections, and ends the thread. */
  close(): Promise<void>;
}

/** Opens the grammars of a checkpoint with a tokenizer once, on the first call. */
export function grammarsOf(
  { folder, shape, stop }: Pick<HttpSettings, "folder" | "shape" | "stop">,
  files: FileSystem,
): { open(): Promise<Grammars>; close(): Promise<void> } {
  let opened: Promise<Grammars | undefined> | undefined;
  return {
    open: async () => {
      const { vocabulary } = shape;
      opened ??= openGrammars(folder, files, { vocabulary, stop });
      return (await opened)!;
    },
    close: async () => (await opened)?.close(),
  };
}

/** The port of a loop or of its routes. */
export function loopPort(port: MessagePort): LoopPort {
  return {
    send: (message) => port.postMessage(message),
    receive: (action) => {
      port.on("message", action);
    },
  };
}

/** Starts the thread. Throws DataError or MachineError if it cannot listen. */
export async function startHttp(
  settings: HttpSettings,
  { routes, onFail }: {
    readonly routes: MessagePort;
    /** Called if the thread ends by itself after it listens. */
    readonly onFail: (error: Error) => void;
  },
): Promise<HttpThread> {
  const data: HttpData = { settings, loop: routes };
  const worker = new Worker(new URL("cli/http_program.js", RUNNING_ROOT), {
    workerData: data,
    transferList: [routes],
    execArgv: [],
  });
  const send = (request: HttpRequest) => worker.postMessage(request);
  let fail = (_: Error) => {};
  let drained = () => {};
  const exited = new Promise<void>((resolve) => {
    worker.on("exit", () => {
      fail(
        new MachineError(
          "Cannot go on: the thread for requests has ended. Start the command again",
        ),
      );
      drained();
      resolve();
    });
  });
  const address = await new Promise<string>((resolve, reject) => {
    fail = reject;
    worker.on("error", (error) => fail(error));
    worker.on("message", (report: HttpReport) => {
      switch (report.kind) {
        case "listens":
          return resolve(report.address);
        case "refused":
          void worker.terminate();
          return reject(
            new (report.machine ? MachineError : DataError)(report.message),
          );
        case "drained":
          return drained();
        default:
          report satisfies never;
      }
    });
  });
  fail = onFail;
  return {
    address,
    drain: () =>
      new Promise((resolve) => {
        drained = resolve;
        send("drain");
      }),
    close: async () => {
      fail = () => {};
      send("close");
      await exited;
    },
  };
}
