/** The interface of the command line to the process: output, files and clock. */

import { spawn } from "node:child_process";
import process from "node:process";
import type { Readable, Writable } from "node:stream";
import type { AdapterSystemInfo, FileSystem } from "../engine/mod.ts";
import { availableCores } from "../runtime/available_cores.ts";
import { userCache } from "../runtime/cache/folders.ts";
import { adapterSystemInfo } from "./adapter_system_info.ts";
import { startEncodeThreads } from "./encode_threads.ts";
import { fileError, hasGraphics, nodeFiles } from "./files.ts";
import { type HubSettings, hubSettings } from "./hub_settings.ts";
import { launchedRank } from "./launch/launched_rank.ts";
import { startSearchThread } from "./search_thread.ts";

/** The streams, files and clock of a command. */
export interface CliIo {
  /** Writes to standard output. Rejects with OutputClosed after the reader has closed it. */
  out(text: string): Promise<void>;
  /** Writes a line to standard error. */
  err(line: string): void;
  /** Standard input. */
  readonly input: Readable;
  /** Standard error is a terminal, so progress bars are useful. */
  readonly terminal: boolean;
  /** Long loading is reported in lines on standard error, because there is no terminal. */
  readonly progressLines: boolean;
  /** Standard error, for progress bars. */
  readonly errorStream: Writable;
  readonly files: FileSystem;
  /** The cache folder of this user. Undefined for a user without a home folder. */
  readonly cache: string | undefined;
  /** The source of models by name. */
  readonly hub: HubSettings;
  /** Environment variables. */
  readonly environment: { readonly [name: string]: string | undefined };
  /** Number of cores that this process may use. */
  readonly threads: number;
  /** Starts another thread for a search. Default: there is none. */
  readonly searchThread?: typeof startSearchThread;
  /** Starts threads that encode. Default: there are none. */
  readonly encodeThreads?: typeof startEncodeThreads;
  /** Whether the system has a graphics device, as far as is known without WebGPU. */
  readonly graphics: boolean;
  /** Returns the locations of adapters, which distinguish adapters of the same name. */
  systemInfo(): Promise<AdapterSystemInfo>;
  /** Opens a page or a file in the user's browser. */
  browse(address: string): void;
  /** Current time in milliseconds. */
  now(): number;
  /** Bytes that this process has read from disk. 0 if the system does not count them. */
  bytesRead(): number;
  /**
   * Registers an action for the first Ctrl-C or SIGTERM, which then does not end the process. Returns a function that
   * removes it.
   */
  onInterrupt(action: (signal: number) => void): () => void;
}

/** Signals that request the end of a process. */
const ENDING = ["SIGINT", "SIGTERM"] as const;

/** Thrown after the reader has closed the output. This is not an error. */
export class OutputClosed extends Error {
  override name = "OutputClosed";
}

/** Thrown after Ctrl-C or SIGTERM has ended an action. */
export class Interrupted extends Error {
  override name = "Interrupted";

  constructor(readonly signal: number) {
    super("a signal has ended the action");
  }
}

/**
 * Runs an action that removes its incomplete files if it fails. After Ctrl-C or SIGTERM, the next call of `proceed`
 * throws. Throws Interrupted then.
 */
export async function interruptible<R>(
  io: Pick<CliIo, "onInterrupt">,
  action: (proceed: () => void) => Promise<R>,
): Promise<R> {
  let signal: number | undefined;
  let interrupted: Interrupted | undefined;
  const release = io.onInterrupt((number) => {
    signal = number;
  });
  const proceed = () => {
    if (signal !== undefined) throw interrupted = new Interrupted(signal);
  };
  try {
    const result = await action(proceed);
    // A later part of the command does not start.
    proceed();
    return result;
  } catch (error) {
    // File systems convert errors of the written parts.
    throw interrupted ?? error;
  } finally {
    release();
  }
}

/** The streams of this process. */
export function processIo(): CliIo {
  // Broken pipes are reported both as events and through callbacks. Only the callbacks are used.
  process.stdout.on("error", () => {});
  process.stderr.on("error", () => {});
  return {
    out: (text) =>
      new Promise((resolve, reject) => {
        process.stdout.write(text, (error) => {
          if (!error) resolve();
          else reject(outputError(error));
        });
      }),
    err: (line) => {
      process.stderr.write(`${line}\n`);
    },
    // Lazy: the mere access keeps a process from ending.
    get input() {
      return process.stdin;
    },
    terminal: process.stderr.isTTY === true,
    progressLines: process.stderr.isTTY !== true && launchedRank() === 0,
    errorStream: process.stderr,
    files: nodeFiles(),
    cache: userCache(),
    hub: hubSettings(),
    environment: process.env,
    threads: availableCores(),
    searchThread: startSearchThread,
    encodeThreads: startEncodeThreads,
    graphics: hasGraphics(),
    systemInfo: adapterSystemInfo,
    browse,
    now: () => performance.now(),
    // The system counts in units of 512 bytes.
    bytesRead: () => 512 * process.resourceUsage().fsRead,
    onInterrupt: (action) => {
      // Schedulers send SIGTERM. The second signal of either kind ends the process.
      const release = (): void => {
        for (const name of ENDING) process.off(name, once);
      };
      const once = (_: NodeJS.Signals, signal: number): void => {
        release();
        action(signal);
      };
      for (const name of ENDING) process.on(name, once);
      return release;
    },
  };
}

/** The command that opens an address, by platform. */
const OPENERS: { readonly [platform: string]: readonly string[] } = {
  darwin: ["open"],
  win32: ["cmd", "/c", "start", ""],
};

function browse(address: string): void {
  const [command, ...argv] = OPENERS[process.platform] ?? ["xdg-open"];
  const child = spawn(command!, [...argv, address], {
    stdio: "ignore",
    detached: true,
  });
  child.on("error", () => {
    process.stderr.write(
      `Cannot open the browser: there is no '${command}'. Open ${address}\n`,
    );
  });
  child.unref();
}

function outputError(error: Error): Error {
  const code = "code" in error ? error.code : undefined;
  return code === "EPIPE" || code === "ERR_STREAM_DESTROYED"
    ? new OutputClosed("the output is closed")
    : fileError(error, "write", "standard output");
}
