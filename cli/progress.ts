/** Progress of loading: a bar on a terminal, and nothing elsewhere. */

import { Presets, SingleBar } from "cli-progress";
import type { Progress } from "../engine/mod.ts";
import type { CliIo } from "./io.ts";

/** A progress bar of loading. */
export interface ProgressBar {
  update(progress: Progress): void;
  stop(): void;
}

const TITLES: { readonly [S in Progress["stage"]]: string } = {
  kernels: "Preparing kernels",
  weights: "Loading weights",
  files: "Reading files",
};

/** A progress bar with explicit amounts. */
export interface Bar {
  update(done: number): void;
  stop(): void;
}

/**
 * Creates a bar on standard error, silent if it is not a terminal. `format` contains `{bar}` and optionally
 * `{percentage}`.
 */
export function createBar(io: CliIo, format: string, total: number): Bar {
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

/** Creates a progress bar of loading on standard error, silent if it is not a terminal. */
export function createProgressBar(io: CliIo): ProgressBar {
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
        bar = createBar(
          io,
          `${TITLES[progress.stage]} {bar} {percentage} %`,
          progress.total,
        );
      }
      bar?.update(progress.done);
    },
    stop,
  };
}
