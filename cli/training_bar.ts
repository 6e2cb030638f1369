/** Progress of training: a bar on a terminal, and occasional lines elsewhere. */

import { Presets, SingleBar } from "cli-progress";
import type { PolicyMetrics, StepMetrics } from "../engine/mod.ts";
import type { CliIo } from "./io.ts";

/** Reports the progress of training. */
export interface TrainingBar {
  step(metrics: StepMetrics): Promise<void>;
  stop(): void;
}

/** Number of lines per training without a terminal. */
const LINES = 50;

/** Creates a bar on standard error, or prints lines on standard output. */
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
          formatTime: duration,
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

/** Formats a time in seconds, such as `45s`, `2m05s` or `1h30m`, or `?` if it is unknown. */
export function duration(time: number): string {
  if (!Number.isFinite(time)) return "?";
  const seconds = Math.round(time);
  const minutes = Math.round(seconds / 60);
  const two = (n: number): string => String(n).padStart(2, "0");
  return seconds < 60
    ? `${seconds}s`
    : seconds < 3600
    ? `${Math.floor(seconds / 60)}m${two(seconds % 60)}s`
    : `${Math.floor(minutes / 60)}h${two(minutes % 60)}m`;
}

/** Formats the figures of a step. */
export function describeStep(metrics: StepMetrics): string {
  const { step, loss, gradientNorm, tokensPerSecond, experts } = metrics;
  return [
    `step ${step}: loss ${loss.toFixed(4)}`,
    ...metrics.validation === undefined
      ? []
      : [`validation ${metrics.validation.toFixed(4)}`],
    ...metrics.policy ? [describePolicy(metrics.policy)] : [],
    ...Object.entries(metrics.parts).map(([name, value]) =>
      `${name} ${value.toPrecision(3)}`
    ),
    `gradient ${gradientNorm.toFixed(3)}`,
    `${Math.round(tokensPerSecond)} tokens/s`,
    ...experts.length > 0 ? [`experts ${describeLoad(experts)}`] : [],
    ...metrics.sentBytes > 0 ? [`${bytes(metrics.sentBytes)} exchanged`] : [],
  ].join(", ");
}

function describePolicy(
  { reward, length, entropy, logRatio }: PolicyMetrics,
): string {
  return [
    `reward ${reward.toPrecision(4)}`,
    `${length.toFixed(1)} tokens a sample`,
    `entropy ${entropy.toFixed(3)}`,
    `log ratio ${logRatio === 0 ? "0" : logRatio.toExponential(1)}`,
  ].join(", ");
}

/** Formats the minimum and maximum load of any layer's expert over several steps. Undefined without experts. */
export function describeExperts(
  steps: readonly StepMetrics[],
): string | undefined {
  const [first] = steps;
  if (first === undefined || first.experts.length === 0) return undefined;
  const mean = first.experts.map((layer, l) =>
    layer.map((_, e) =>
      steps.reduce((sum, { experts }) => sum + experts[l]![e]!, 0) /
      steps.length
    )
  );
  return `experts in the last ${steps.length} steps: ${describeLoad(mean)}`;
}

/** Formats a load relative to a fair share of 1, which all experts have if the load is even. */
function describeLoad(experts: StepMetrics["experts"]): string {
  const load = experts.flat();
  const fair = experts[0]!.length;
  const [min, max] = [Math.min(...load), Math.max(...load)];
  return `${(min * fair).toFixed(2)} to ${
    (max * fair).toFixed(2)
  } of a fair share`;
}

function bytes(count: number): string {
  return count < 2 ** 20
    ? `${(count / 2 ** 10).toFixed(0)} KiB`
    : `${(count / 2 ** 20).toFixed(1)} MiB`;
}
