/** What the command line touches of the process: output, files, the clock. */

import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import process from "node:process";
import type { Readable, Writable } from "node:stream";
import type { AdapterPlaces, FileSystem } from "../engine/mod.ts";
import { userCache } from "../runtime/cache/folders.ts";
import { adapterPlaces } from "./adapter_places.ts";
import { fileError, hasGraphics, nodeFiles } from "./files.ts";
import { type HubSettings, hubSettings } from "./hub_settings.ts";

/** Streams, files and a clock, passed to every command. */
export interface CliIo {
  /** Write to standard output; rejects with OutputClosed once nobody reads it. */
  out(text: string): Promise<void>;
  /** Write a line to standard error. */
  err(line: string): void;
  /** Standard input. */
  readonly input: Readable;
  /** Standard error is a terminal, so that progress bars make sense. */
  readonly terminal: boolean;
  /** Standard error, for progress bars. */
  readonly errorStream: Writable;
  readonly files: FileSystem;
  /** The cache folder of this user; undefined for one without a home. */
  readonly cache: string | undefined;
  /** Where models are fetched from by name. */
  readonly hub: HubSettings;
  /** Variables of the environment. */
  readonly environment: { readonly [name: string]: string | undefined };
  /** Threads that this machine runs at once. */
  readonly threads: number;
  /** Whether the system has a graphics device at all, as far as is known without WebGPU. */
  readonly graphics: boolean;
  /** Where adapters are, to tell those of one name apart. */
  places(): Promise<AdapterPlaces>;
  /** Show a page or a file in the browser of the user. */
  browse(address: string): void;
  /** Milliseconds. */
  now(): number;
  /** Do something at Ctrl-C, or on SIGTERM, once, instead of ending at once; returns what undoes it. */
  onInterrupt(action: () => void): () => void;
}

/** Signals that ask a process to end. */
const ENDING = ["SIGINT", "SIGTERM"] as const;

/** Whoever read the output has gone; that is no error. */
export class OutputClosed extends Error {
  override name = "OutputClosed";
}

/** The streams of this process. */
export function processIo(): CliIo {
  // Broken pipes arrive as events as well as through callbacks; only the callbacks are used.
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
    // Only to look at it keeps a process from ending.
    get input() {
      return process.stdin;
    },
    terminal: process.stderr.isTTY === true,
    errorStream: process.stderr,
    files: nodeFiles(),
    cache: userCache(),
    hub: hubSettings(),
    environment: process.env,
    threads: availableParallelism(),
    graphics: hasGraphics(),
    places: adapterPlaces,
    browse,
    now: () => performance.now(),
    onInterrupt: (action) => {
      // Schedulers send SIGTERM. The second signal, of either kind, ends the process.
      const release = (): void => {
        for (const name of ENDING) process.off(name, once);
      };
      const once = (): void => {
        release();
        action();
      };
      for (const name of ENDING) process.on(name, once);
      return release;
    },
  };
}

/** What opens an address, by platform. */
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
