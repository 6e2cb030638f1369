/**
 * Counts the memory traffic of decode and prefill steps on described GPUs, by executing workgroups of each kernel in
 * lock step, and bounds their times. Nothing is measured: counts are exact for the kernels, times are those of a model
 * (`traffic/bound.ts`). Exchanges between ranks are not counted.
 *
 *     npm run -s bench -- traffic [--gpu h100|rtx4090|mi300x] [--unroll 4] [--candidates 1] [--out FILE]
 *     npm run -s bench -- traffic --config FILE [--mesh ep=1] [--tokens 1] [--sequences 1] [--past 1024] […]
 *
 * With `--config`, prints every launch of a step. Default: steps of three published models. `--tokens` are new tokens
 * over all ranks; `--sequences` defaults to as many (decode). `--unroll`: iterations of an innermost loop whose loads
 * the driver keeps in flight; it is the free parameter of the model. `--candidates`: best next tokens that the device
 * selects.
 */

import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseMesh } from "../cli/flags/values.ts";
import { writeResult } from "./results.ts";
import {
  describedGpu,
  GPU_NAMES,
  type GpuName,
  isGpuName,
} from "./traffic/gpus.ts";
import { countStep, type StepTraffic } from "./traffic/step.ts";
import {
  layerTables,
  limitingOf,
  markdownTable,
  milliseconds,
  missedLines,
  stepLine,
} from "./traffic/tables.ts";

const { values: flags } = parseArgs({
  options: {
    config: { type: "string" },
    gpu: { type: "string" },
    mesh: { type: "string", default: "ep=1" },
    tokens: { type: "string", default: "1" },
    sequences: { type: "string" },
    past: { type: "string", default: "1024" },
    unroll: { type: "string", default: "4" },
    candidates: { type: "string", default: "1" },
    numerics: { type: "string", default: "exact" },
    out: { type: "string" },
  },
});
const [unroll, candidates] = [Number(flags.unroll), Number(flags.candidates)];

/** A decode step of `batch` sequences of `past` tokens each. */
interface Case {
  readonly model: string;
  readonly config: string;
  readonly mesh: string;
  readonly batch: number;
  readonly past: number;
}

const CASES: readonly Case[] = [
  publishedCase("Qwen3-30B-A3B", { batch: 1, past: 1024 }),
  publishedCase("Qwen3-30B-A3B", { batch: 8, past: 1024 }),
  publishedCase("Qwen3-30B-A3B", { batch: 1, past: 32_768 }),
  publishedCase("Qwen3-30B-A3B", { batch: 8, past: 32_768 }),
  publishedCase("gpt-oss-20b", { batch: 1, past: 1024 }),
  publishedCase("gpt-oss-20b", { batch: 8, past: 1024 }),
  publishedCase("gpt-oss-20b", { batch: 1, past: 32_768 }),
  publishedCase("gpt-oss-20b", { batch: 8, past: 32_768 }),
  publishedCase("DeepSeek-V3", { batch: 1, past: 1024, mesh: "ep=8" }),
  publishedCase("DeepSeek-V3", { batch: 8, past: 1024, mesh: "ep=8" }),
  publishedCase("DeepSeek-V3", { batch: 1, past: 32_768, mesh: "ep=8" }),
  publishedCase("DeepSeek-V3", { batch: 8, past: 32_768, mesh: "ep=8" }),
];

function publishedCase(
  model: string,
  { batch, past, mesh = "ep=1" }: {
    readonly batch: number;
    readonly past: number;
    readonly mesh?: string;
  },
): Case {
  const file = `../test/references/configs/${model.toLowerCase()}.json`;
  const config = fileURLToPath(new URL(file, import.meta.url));
  return { model, config, mesh, batch, past };
}

function gpuNamed(name: string): GpuName {
  if (isGpuName(name)) return name;
  throw new Error(
    `Cannot describe the GPU '${name}'. Give --gpu ${GPU_NAMES.join("|")}`,
  );
}

function meshSizes(text: string): { [axis: string]: number } {
  return Object.fromEntries(
    parseMesh(text).map(({ name, size }) => [name, size]),
  );
}

async function showStep(config: string): Promise<void> {
  const gpu = describedGpu(gpuNamed(flags.gpu ?? "h100"));
  const tokens = Number(flags.tokens);
  const workload = {
    tokens,
    sequences: Number(flags.sequences ?? tokens),
    past: Number(flags.past),
  };
  const mesh = meshSizes(flags.mesh);
  const step = await countStep({
    config,
    gpu,
    mesh,
    workload,
    unroll,
    candidates,
    numerics: flags.numerics === "fast" ? "fast" : "exact",
  });
  const name = config.split("/").at(-1)!;
  const text = [
    "# traffic",
    `${name} on ${flags.mesh}, ${gpu.name}: ${tokens} tokens of ${workload.sequences} sequences after ${workload.past}, ${flags.numerics} numerics, unroll ${unroll}. Counted, not measured. A repeated load of a sector by a workgroup counts as a cache hit.`,
    layerTables(step),
    stepLine(step),
    ...missedText(step),
  ].join("\n\n") + "\n";
  console.log(text);
  if (flags.out === undefined) return;
  writeResult(flags.out, {
    program: "traffic",
    config: name,
    gpu: gpu.name,
    mesh,
    workload,
    unroll,
    ...step,
  }, text);
}

function missedText(step: StepTraffic): string[] {
  const lines = missedLines(step);
  if (lines.length === 0) return [];
  return [
    `Below 0.7 of bandwidth:\n\n${lines.map((line) => `- ${line}`).join("\n")}`,
  ];
}

async function showCases(): Promise<void> {
  const gpus = flags.gpu === undefined ? GPU_NAMES : [gpuNamed(flags.gpu)];
  const rows = [
    [
      ...["model", "batch", "context", "GPU", "launches", "ms"],
      ...["memory floor, ms", "ratio", "most of the time"],
    ],
  ];
  const missed: string[] = [];
  const figures: object[] = [];
  for (const { model, config, mesh, batch, past } of CASES) {
    for (const gpu of gpus.map(describedGpu)) {
      const step = await countStep({
        config,
        gpu,
        mesh: meshSizes(mesh),
        workload: { tokens: batch, sequences: batch, past },
        unroll,
        candidates,
      });
      const { seconds, launches, bytes, floor, memory, fits } = step;
      const name = mesh === "ep=1" ? model : `${model}, rank 0 of ${mesh}`;
      const context = past.toLocaleString("en-US");
      rows.push([
        name,
        `${batch}`,
        context,
        fits ? gpu.name : `${gpu.name} †`,
        `${launches}`,
        milliseconds(seconds),
        milliseconds(floor),
        (seconds / floor).toFixed(1),
        limitingOf(step),
      ]);
      const below = missedLines(step);
      missed.push(
        `### ${name}, batch ${batch}, context ${context}, ${gpu.name}`,
        below.map((line) => `- ${line}`).join("\n") || "None.",
      );
      figures.push({
        model,
        mesh,
        batch,
        past,
        gpu: gpu.name,
        seconds,
        launches,
        bytes,
        floor,
        memory,
        fits,
        below,
      });
    }
  }
  const text = [
    "# traffic",
    `Decode steps, counted with unroll ${unroll}; nothing was measured. A repeated load of a sector by a workgroup counts as a cache hit. † The rank needs more memory than the GPU has.`,
    markdownTable(rows).join("\n"),
    "## Launches below 0.7 of bandwidth",
    ...missed,
  ].join("\n\n") + "\n";
  console.log(text);
  if (flags.out === undefined) return;
  writeResult(flags.out, { program: "traffic", unroll, figures }, text);
}

await (flags.config === undefined ? showCases() : showStep(flags.config));
process.exit(0);
