/**
 * Sampled tokens have the log-probabilities of the training's forward pass, bit for bit: continuous batching and
 * paged caches on one mesh, a packed batch on another, before and after ten steps.
 */
// needs: cpu, gpu
// rotates with: engine/train/, engine/generation/sampling.ts

import process from "node:process";
import { readdirSync } from "node:fs";
import t from "tap";
import { PlacementError } from "../compiler/mod.ts";
import type { AdapterChoice } from "../engine/mod.ts";
import { listAdapters } from "../runtime/mod.ts";
import { nativeCompiler } from "../runtime/native/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  largestRatio,
  openTrained,
  sampleTokens,
  takeSteps,
  weightsOf,
} from "./helpers/on_policy.ts";
import { gpuIsSoftware, skipUnasked, skipWithoutGpu } from "./helpers/needs.ts";
import { repeatWith, SEED } from "./helpers/seed.ts";

/** ON_POLICY=all runs each checkpoint on all pairs of meshes and all devices; each, on one pair and one CPU device. */
const WANTED = process.env["ON_POLICY"];
const ALL = WANTED === "all";

const TRAINING = ["dp=2,ep=2", "ep=4", "tp=2"];
const ROLLOUT = ["ep=4", "tp=2,ep=2", "ep=1"];

/**
 * Recorded checkpoints whose weights or, if quantized, adapters can be trained. Excluded: DeepSeek-V4, whose attention
 * has no derivative, and LongCat-Flash, whose routers share no axis for a balancing loss.
 */
const CHECKPOINTS = readdirSync(checkpointFolder("."), { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && /-\d+e/.test(entry.name))
  .map(({ name }) => name)
  .filter((name) => !/^(deepseekv4|longcatflash)/.test(name))
  .sort();

interface Case {
  readonly name: string;
  readonly adapter: keyof typeof DEVICES;
  readonly training: readonly string[];
  readonly rollout: readonly string[];
}

/** Devices, with the reason for skipping each, or false. */
const DEVICES = {
  cpu: skipUnasked("cpu"),
  native: await nativeCompiler() ? skipUnasked("cpu") : "no C compiler",
  gpu: skipWithoutGpu,
} as const;

const [gpu] = await listAdapters();

function draw(turn: number, adapter: Case["adapter"]): Case {
  const at = <T>(list: readonly T[]): T => list[turn % list.length]!;
  return {
    adapter,
    name: at(CHECKPOINTS),
    training: [at(TRAINING)],
    rollout: [ROLLOUT[Math.floor(turn / 3) % 3]!],
  };
}

const turn = Math.abs(SEED);
const OLMOE: Case = {
  name: "olmoe-16e",
  adapter: "gpu",
  training: ["dp=2,ep=2"],
  rollout: ["ep=4"],
};

const CASES: readonly Case[] = ALL
  ? CHECKPOINTS.flatMap((name) =>
    (["cpu", "native", "gpu"] as const).map((adapter) => (
      { name, adapter, training: TRAINING, rollout: ROLLOUT }
    ))
  )
  : WANTED === "each"
  ? CHECKPOINTS.map((_, i) => draw(i, i % 2 === 0 ? "cpu" : "native"))
  : [
    // Compiled C takes several times as long.
    draw(turn, turn % 4 === 3 ? "native" : "cpu"),
    // A software GPU compiles kernels for seconds.
    ...!gpuIsSoftware || turn % 6 === 1 ? [OLMOE] : [],
  ];

for (const { name, adapter: device, training, rollout } of CASES) {
  const skip = DEVICES[device];
  const adapter: AdapterChoice = device === "gpu" ? [gpu?.number ?? 0] : device;
  const on = `${name} on ${device}, from ${rollout} to ${training}`;
  t.test(`log-probabilities of ${on}`, { skip }, async (t) => {
    if (WANTED === undefined) t.comment(repeatWith());
    for (const mesh of training) {
      const opened = await openTrained(name, { mesh, adapter }).catch(
        (error: unknown) => {
          if (!(error instanceof PlacementError)) throw error;
          t.comment(`${name} is not trained on ${mesh}: ${error.message}`);
          return undefined;
        },
      );
      if (!opened) continue;
      for (const after of ["no step", "ten steps"]) {
        if (after === "ten steps") await takeSteps(opened);
        const weights = await weightsOf(name, opened);
        for (const from of rollout) {
          const sampled = await sampleTokens(name, weights, {
            mesh: from,
            adapter,
          });
          const ratio = await largestRatio(opened, sampled);
          t.equal(ratio, 0, `${from} to ${mesh} after ${after}`);
        }
      }
      await opened.close();
    }
  });
}
