/**
 * Training: the cost of a step relative to PyTorch on the CPU, the fraction of exchanges in a step for ep=1, 2, 4 and
 * 8, and memory relative to the plan. Flags: `--adapter cpu|NUMBER` (default: cpu), `--runs N`.
 */

import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { MachineError } from "../spec/errors.ts";
import { describe, interleaved, machine, median } from "./measure.ts";
import { startPyTorch } from "./train/pytorch.ts";
import { loadTraining, STEP, weightsOf } from "./train/training.ts";
import { workFlags } from "./work.ts";

const { adapter, repetitions } = workFlags("cpu");
const config = JSON.parse(
  readFileSync(
    new URL("../examples/demo-lm/config.json", import.meta.url),
    "utf8",
  ),
) as { readonly [name: string]: unknown };
const TOKENS = STEP.batch * STEP.length;

function rate(times: readonly number[]): string {
  return `${describe(times)}, ${
    (TOKENS / median(times) * 1000).toFixed(0)
  } tokens/s`;
}

async function againstPyTorch(): Promise<void> {
  const ours = await loadTraining(config, { adapter, mesh: { ep: 1 } });
  const threads = availableParallelism();
  const theirs = await startPyTorch(config, {
    weights: weightsOf(ours.plan),
    threads,
  });
  if (theirs === undefined) {
    console.log(
      "PyTorch is not installed (Debian: apt-get install python3-torch libopenblas0-pthread), so there is nothing to compare with",
    );
    const { step } = await interleaved(
      { step: ours.step },
      { repetitions, warmUp: 2 },
    );
    console.log(`a step, ep=1: ${rate(step)}`);
    return await ours.close();
  }
  let worst = 0;
  for (let i = 0; i < 3; i++) {
    const [loss, other] = [await ours.step(), (await theirs.step()).loss];
    worst = Math.max(worst, Math.abs(loss / other - 1));
  }
  if (worst > 1e-4) {
    throw new MachineError(
      `Cannot compare with PyTorch: losses of the first steps differ by ${worst}. Correct bench/train/olmoe.py`,
    );
  }
  const times = await interleaved(
    { ours: ours.step, theirs: theirs.step },
    { repetitions, warmUp: 1 },
  );
  const ratios = times.ours.map((ms, i) => times.theirs[i]! / ms);
  console.log(
    `losses of the first 3 steps differ by ${worst.toExponential(1)} at most`,
  );
  console.log(`a step, ep=1, this project: ${rate(times.ours)}`);
  console.log(
    `a step, PyTorch ${theirs.version} with ${theirs.blas}, ${threads} threads: ${
      rate(times.theirs)
    }`,
  );
  console.log(
    `a step, speed against PyTorch: ${
      (median(times.theirs) / median(times.ours)).toFixed(2)
    }x (pairs: median ${median(ratios).toFixed(2)})`,
  );
  theirs.close();
  await ours.close();
}

/** Steps of a plan that exchange data between ranks. */
const EXCHANGES = ["allToAll", "allGather", "wait"];

async function shareOfExchange(ep: number): Promise<void> {
  const plain = await loadTraining(config, { adapter, mesh: { ep } });
  const { step } = await interleaved(
    { step: plain.step },
    { repetitions: 3, warmUp: 1 },
  );
  await plain.close();
  const traced = await loadTraining(config, {
    adapter,
    mesh: { ep },
    traced: true,
  });
  for (let i = 0; i < 3; i++) await traced.step();
  const times = traced.times();
  const sum = (ops: readonly string[]) =>
    ops.reduce((n, op) => n + (times[op] ?? 0), 0);
  const sent = traced.statistics().flatMap(({ sentBytes }) =>
    Object.values(sentBytes).map(({ actual }) => actual)
  ).reduce((n, bytes) => n + bytes, 0);
  console.log(
    `ep=${ep}: ${rate(step)}; exchanges ${
      (100 * sum(EXCHANGES) / sum(Object.keys(times))).toFixed(1)
    } % of it, ${(sent / 3 / 2 ** 20).toFixed(1)} MiB sent in a step`,
  );
  await traced.close();
}

/** Prints the planned and the measured memory of ranks. */
async function memory(
  name: string,
  options: Partial<Parameters<typeof loadTraining>[1]>,
): Promise<void> {
  const loaded = await loadTraining(config, {
    adapter,
    mesh: { dp: 2, ep: 2 },
    ...options,
  });
  await loaded.step();
  const maxBytes = (which: "predicted" | "actual") =>
    Math.max(...loaded.statistics().map(({ peakBytes }) => peakBytes[which]));
  const [predicted, actual] = [maxBytes("predicted"), maxBytes("actual")];
  console.log(
    `memory of a rank, dp=2,ep=2, ${name}: ${mebibytes(actual)}, predicted ${
      mebibytes(predicted)
    }${predicted === actual ? " (equal)" : ""}`,
  );
  await loaded.close();
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(2)} MiB`;
}

console.log(
  `${machine()}, ${config["num_hidden_layers"]} layers, ${
    config["hidden_size"]
  } wide, ${
    config["num_experts"]
  } experts, ${STEP.batch} sequences of ${STEP.length} tokens`,
);
await againstPyTorch();
for (const ep of [1, 2, 4, 8]) await shareOfExchange(ep);
await memory("as it is", {});
await memory("with recomputation", { again: true });
await memory("optimizer sharded (ZeRO-1)", { zero: 1 });
await memory("both", { again: true, zero: 1 });
