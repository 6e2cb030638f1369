/** Progress of long commands: a bar on a terminal, a line every ten seconds elsewhere. */

import { Presets, SingleBar } from "cli-progress";
import type { Progress } from "../engine/mod.ts";
import type { CliIo } from "./io.ts";

/** A progress bar of loading. */
export interface ProgressBar {
  update(progress: Progress): void;
  stop(): void;
}

/** Texts before and after the bar of a stage. */
const TEXTS: { readonly [S in Progress["stage"]]: readonly [string, string] } =
  {
    kernels: ["Compiling kernels", "{value} of {total}"],
    weights: ["Loading weights", "{percentage} %"],
    files: ["Reading files", "{percentage} %"],
  };

/** Milliseconds between lines without a terminal. */
const LINE_MS = 10_000;

/** A progress bar with explicit amounts. */
export interface Bar {
  update(done: number): void;
  stop(): void;
}

/**
 * Creates a bar on standard error. Without a terminal it prints a line every ten seconds. `format` contains `{bar}`
 * and optionally `{percentage}`, `{value}` and `{total}`.
 */
export function createBar(io: CliIo, format: string, total: number): Bar {
  if (io.progressLines) {
    const write = lineWriter(io);
    return { update: (done) => write(format, done, total), stop: () => {} };
  }
  if (!io.terminal) return { update: () => {}, stop: () => {} };
  const bar = new SingleBar({
    format,
    stream: io.errorStream as NodeJS.WriteStream,
    clearOnComplete: true,
    hideCursor: true,
  }, Presets.shades_classic);
  bar.start(total, 0);
  return { update: (done) => bar.update(done), stop: () => bar.stop() };
}

/** Creates a progress bar of loading on standard error. Without a terminal it prints a line every ten seconds. */
export function createProgressBar(io: CliIo): ProgressBar {
  if (io.progressLines) {
    const write = lineWriter(io);
    return {
      update: ({ stage, done, total }) => write(formatOf(stage), done, total),
      stop: () => {},
    };
  }
  let bar: Bar | undefined;
  let stage: Progress["stage"] | undefined;
  const stop = (): void => {
    bar?.stop();
    bar = undefined;
  };
  return {
    update: (progress) => {
      if (progress.stage !== stage) {
        stop();
        stage = progress.stage;
        bar = createBar(io, formatOf(stage), progress.total);
      }
      bar?.update(progress.done);
    },
    stop,
  };
}

function formatOf(stage: Progress["stage"]): string {
  const [before, after] = TEXTS[stage];
  return `${before} {bar} ${after}`;
}

/** Prints progress as lines on standard error, such as `Compiling kernels: 12 of 57`. */
function lineWriter(
  io: CliIo,
): (format: string, done: number, total: number) => void {
  let last = io.now();
  return (format, done, total) => {
    if (io.now() - last < LINE_MS || done === total) return;
    last = io.now();
    const line = format
      .replace(" {bar}", ":")
      .replace("{value}", `${done}`)
      .replace("{total}", `${total}`)
      .replace("{percentage}", `${Math.floor(100 * done / total)}`);
    io.err(line);
  };
}
