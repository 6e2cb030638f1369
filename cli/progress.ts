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

/** A bar on standard error; silent where that is no terminal. */
export function createProgressBar(io: CliIo): ProgressBar {
  if (!io.terminal) return { update: () => {}, stop: () => {} };
  let bar: SingleBar | undefined;
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
        bar = new SingleBar({
          format: `${TITLES[progress.stage]} {bar} {percentage} %`,
          stream: io.errorStream as NodeJS.WriteStream,
          clearOnComplete: true,
          hideCursor: true,
        }, Presets.shades_classic);
        bar.start(progress.total, 0);
      }
      bar?.update(progress.done);
    },
    stop,
  };
}
