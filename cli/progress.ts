/** Progress of loading, as a bar on a terminal and as nothing elsewhere. */

import { Presets, SingleBar } from "cli-progress";
import type { Progress } from "../engine/mod.ts";
import type { CliIo } from "./io.ts";

/** A bar that follows loading. */
export interface ProgressBar {
  update(progress: Progress): void;
  stop(): void;
}

const TITLES: { readonly [S in Progress["stage"]]: string } = {
  kernels: "Preparing kernels",
  weights: "Loading weights",
};

/** A bar that is given amounts. */
export interface Bar {
  update(done: number): void;
  stop(): void;
}

/** A bar on standard error, silent where that is no terminal. `format` has `{bar}` and perhaps `{percentage}`. */
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

/** A bar that follows loading, on standard error; silent where that is no terminal. */
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
