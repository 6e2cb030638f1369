/** How far training is: a bar on a terminal, elsewhere a line now and then. */

import { Presets, SingleBar } from "cli-progress";
import type { StepMetrics } from "../engine/mod.ts";
import type { CliIo } from "./io.ts";

/** Follows training. */
export interface TrainingBar {
  step(metrics: StepMetrics): Promise<void>;
  stop(): void;
}

/** Lines of a whole training where there is no terminal. */
const LINES = 50;

/** A bar on standard error, or lines on standard output. */
export function createTrainingBar(io: CliIo, steps: number): TrainingBar {
  if (!io.terminal) {
    const every = Math.max(1, Math.round(steps / LINES));
    return {
      step: async (metrics) => {
        if (metrics.step % every !== 0 || metrics.step === steps) return;
        await io.out(`${describeStep(metrics)}\n`);
      },
      stop: () => {},
    };
  }
  let bar: SingleBar | undefined;
  return {
    step: (metrics) => {
      if (!bar) {
        bar = new SingleBar({
          format: "{bar} {text}, {eta_formatted} left",
          stream: io.errorStream as NodeJS.WriteStream,
          clearOnComplete: true,
          hideCursor: true,
        }, Presets.shades_classic);
        bar.start(steps, metrics.step - 1);
      }
      bar.update(metrics.step, { text: describeStep(metrics) });
      return Promise.resolve();
    },
    stop: () => bar?.stop(),
  };
}

/** The figures of a step in words. */
export function describeStep(metrics: StepMetrics): string {
  const { step, loss, gradientNorm, tokensPerSecond, experts } = metrics;
  const load = experts.flat();
  // Of a fair share; 1 where all experts get the same.
  const fair = experts[0]?.length ?? 0;
  const least = Math.min(...load) * fair, most = Math.max(...load) * fair;
  return [
    `step ${step}: loss ${loss.toFixed(4)}`,
    ...metrics.validation === undefined
      ? []
      : [`validation ${metrics.validation.toFixed(4)}`],
    `gradient ${gradientNorm.toFixed(3)}`,
    `${Math.round(tokensPerSecond)} tokens/s`,
    ...load.length > 0
      ? [`experts ${least.toFixed(2)} to ${most.toFixed(2)} of a fair share`]
      : [],
    ...metrics.sentBytes > 0 ? [`${bytes(metrics.sentBytes)} exchanged`] : [],
  ].join(", ");
}

function bytes(count: number): string {
  return count < 2 ** 20
    ? `${(count / 2 ** 10).toFixed(0)} KiB`
    : `${(count / 2 ** 20).toFixed(1)} MiB`;
}
