/**
 * Metrics of a training as a file with one line of JSON per step. At the end, plots of the loss and the expert load are
 * drawn.
 */

import type { FileSystem } from "../engine/mod.ts";
import { parseJson } from "../spec/parse_json.ts";
import type { CliIo } from "./io.ts";
import {
  type Figure,
  figureSvg,
  LIGHT,
  loadOverSteps,
  lossPicture,
} from "../view/mod.ts";
import type { StepRecord } from "./step_record.ts";

/** Receives metrics during training. */
export interface MetricsFile {
  /** Writes the record of a step and returns the line. */
  add(record: StepRecord): Promise<string>;
  /** Draws the plots. */
  finish(): Promise<void>;
}

/**
 * The location of metrics: `--metrics`, otherwise `metrics.jsonl` in the checkpoint folder, with the plots next to it.
 */
export interface MetricsOptions {
  readonly out: string;
  readonly metrics?: string;
  readonly resume?: boolean;
}

/** Opens the file. In a resumed training, the lines of repeated steps are replaced. */
export function openMetrics(
  { files }: Pick<CliIo, "files">,
  { out, metrics, resume = false }: MetricsOptions,
): MetricsFile {
  const file = metrics ?? files.join(out, "metrics.jsonl");
  let open = false;
  return {
    add: async (added) => {
      const line = JSON.stringify(added);
      if (open) await files.append(file, bytes(`${line}\n`));
      else {
        const before = resume ? await readRecords(file, files) : [];
        const lines = before.filter((record) => record.step < added.step)
          .map((record) => JSON.stringify(record));
        await files.write(file, [bytes([...lines, line, ""].join("\n"))]);
        open = true;
      }
      return line;
    },
    finish: async () => {
      if (!open) return;
      const records = await readRecords(file, files);
      const plots = {
        "loss.svg": lossOf(records),
        "experts.svg": loadOverSteps(records, WIDTH),
        "reward.svg": rewardsOf(records),
      };
      for (const [name, figure] of Object.entries(plots)) {
        if (figure === undefined) continue;
        const text = `${figureSvg(figure, { palette: LIGHT })}\n`;
        await files.write(besides(file, name, files), [bytes(text)]);
      }
    },
  };
}

/** Size of the plots in pixels. */
const WIDTH = 720, HEIGHT = 400;

/** Plots the training and validation loss by step. */
export function lossOf(records: readonly StepRecord[]): Figure {
  const losses = {
    losses: records.map(({ step, ceLoss }) => [step, ceLoss] as const),
    validations: records.flatMap(({ step, validationLoss }) =>
      validationLoss === null ? [] : [[step, validationLoss] as const]
    ),
    name: "Cross-entropy loss, nats per token",
  };
  return lossPicture(losses, [WIDTH, HEIGHT]);
}

/** Plots the mean reward by step. Undefined without policy gradients. */
function rewardsOf(records: readonly StepRecord[]): Figure | undefined {
  const losses = records.flatMap(({ step, policy }) =>
    policy ? [[step, policy.reward] as const] : []
  );
  if (losses.length === 0) return undefined;
  const rewards = { losses, validations: [], name: "Mean reward" };
  return lossPicture(rewards, [WIDTH, HEIGHT]);
}

/** Returns the complete lines of a file, or none if the file does not exist. */
async function readRecords(
  file: string,
  files: FileSystem,
): Promise<StepRecord[]> {
  if (await files.stat(file) === undefined) return [];
  return (await files.readText(file)).split("\n").flatMap((line) => {
    try {
      return [parseJson(line) as StepRecord];
    } catch {
      // The last line may be incomplete.
      return [];
    }
  });
}

function besides(file: string, name: string, files: FileSystem): string {
  const end = Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\"));
  return end < 0 ? name : files.join(file.slice(0, end), name);
}

function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
