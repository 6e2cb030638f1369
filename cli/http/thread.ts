/** Starts the thread that answers a server's requests. */

import { type MessagePort, Worker } from "node:worker_threads";
import {
  type FileSystem,
  type Grammars,
  openGrammars,
} from "../../engine/mod.ts";
import type { LoopPort } from "../../engine/server/mod.ts";
import { DataError, invariant, MachineError } from "../../spec/mod.ts";
import { RUNNING_ROOT } from "../../spec/running.ts";
import type {
  HttpOptions,
  HttpReport,
  HttpRequest,
  HttpSettings,
} from "../http_program.ts";

/** A thread that listens. It rejects requests until it serves a model. */
export interface HttpThread {
  /** `http://HOST:PORT`. */
  readonly address: string;
  /** Throws the error that ended the thread, such as DataError if the tokenizer of the checkpoint cannot be read. */
  check(): void;
  /** Answers requests from now on. Throws as `check`. */
  serve(
    settings: HttpSettings,
    options: {
      readonly routes: MessagePort;
      /** Called if the thread then ends by itself. */
      readonly onFail: (error: Error) => void;
    },
  ): Promise<void>;
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

/**
 * Starts the thread, which listens. Throws DataError or MachineError if it cannot.
 *
 * @param onUnread called if a connection is closed because its client reads nothing
 */
export async function startHttp(
  options: HttpOptions,
  onUnread?: () => void,
): Promise<HttpThread> {
  const worker = new Worker(new URL("cli/http_program.js", RUNNING_ROOT), {
    workerData: options,
    execArgv: [],
  });
  const send = (request: HttpRequest, transfer: MessagePort[] = []) =>
    worker.postMessage(request, transfer);
  /** Why the thread has ended, unless it was asked to. */
  let failure: Error | undefined;
  let fail = (_: Error) => {};
  let next = (_: HttpReport) => {};
  let drained = () => {};
  const failed = (error: Error) => {
    failure ??= error;
    fail(failure);
  };
  const exited = new Promise<void>((resolve) => {
    worker.on("exit", () => {
      failed(
        new MachineError(
          "Cannot go on: the thread for requests has ended. Start the command again",
        ),
      );
      drained();
      resolve();
    });
  });
  worker.on("error", failed);
  worker.on("message", (report: HttpReport) => {
    if (report.kind === "drained") return drained();
    if (report.kind === "unread") return onUnread?.();
    if (report.kind !== "refused") return next(report);
    failed(new (report.machine ? MachineError : DataError)(report.message));
    void worker.terminate();
  });
  /** The next report. */
  const answered = async () =>
    await new Promise<HttpReport>((resolve, reject) => {
      if (failure) return reject(failure);
      fail = reject;
      next = resolve;
    });
  const listens = await answered();
  invariant(listens.kind === "listens", "the first report");
  return {
    address: listens.address,
    check: () => {
      if (failure) throw failure;
    },
    serve: async (settings, { routes, onFail }) => {
      const serves = answered();
      send({ kind: "serve", settings, loop: routes }, [routes]);
      await serves;
      fail = onFail;
    },
    drain: () =>
      new Promise((resolve) => {
        drained = resolve;
        send({ kind: "drain" });
      }),
    close: async () => {
      fail = () => {};
      send({ kind: "close" });
      await exited;
    },
  };
}
