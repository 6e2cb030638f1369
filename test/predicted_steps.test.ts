// Predicted decode steps on described GPUs, against steps counted by `bench -- traffic` and reported speeds.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import t from "tap";
import { resultsPath } from "../bench/results.ts";
import { describedGpu, GPU_NAMES } from "../bench/traffic/gpus.ts";
import { nodeFiles } from "../cli/files.ts";
import { loadTarget } from "../engine/mod.ts";
import { simulate } from "../engine/planner/simulate/mod.ts";
import { compileRepresentatives } from "../engine/planner/summary/compiled.ts";
import type { Machine } from "../spec/mod.ts";
import { inTurn } from "./helpers/seed.ts";

/** A counted decode step of rank 0, without exchanges. */
interface Figure {
  readonly model: string;
  readonly mesh: string;
  readonly batch: number;
  readonly past: number;
  readonly gpu: string;
  readonly seconds: number;
}

const { figures } = JSON.parse(
  readFileSync(resultsPath("traffic"), "utf8"),
) as { readonly figures: readonly Figure[] };

/** A machine of eight devices of its first kind, with free exchanges. */
function eightOf({ devices, ...machine }: Machine): Machine {
  const [kind] = Object.keys(devices);
  return {
    ...machine,
    devices,
    hosts: [{ devices: [{ kind: kind!, count: 8 }] }],
    links: { sameHost: { latency: 0, bandwidth: 1e30, per: "rank" } },
  };
}

/** Predicted seconds of a decode step, without exchanges. */
async function predicted(
  { model, mesh, batch, past }: Omit<Figure, "gpu" | "seconds">,
  machine: Machine,
): Promise<number> {
  const file = `references/configs/${model.toLowerCase()}.json`;
  const config = fileURLToPath(new URL(file, import.meta.url));
  const files = nodeFiles();
  const target = await loadTarget(config, files, { withoutWeights: true });
  if (target.kind === "plan") throw new Error("a configuration is no plan");
  const { plan, weights } = await compileRepresentatives(target, files, {
    machine,
    mesh: { ep: Number(mesh.replace("ep=", "")) },
    next: { candidates: 1 },
    bounds: {
      maxTokens: 512,
      maxSequences: batch,
      maxContext: past + 9,
    },
  });
  const { parts } = simulate(plan, eightOf(machine), {
    tokens: batch,
    sequences: batch,
    past,
  }, { times: (layer) => weights.representatives.of(layer).length });
  return parts.launch + parts.arithmetic + parts.memory;
}

/**
 * Largest ratio of predicted and counted times. Instructions other than multiply-adds, such as those of latent
 * attention over many keys, and waits for memory are predicted roughly.
 */
const MOST = 1.7;

for (const figure of inTurn(figures, 8)) {
  const { model, batch, past, gpu } = figure;
  const name = `${model}, batch ${batch}, context ${past}, ${gpu}`;
  t.test(`${name}: as counted`, async (t) => {
    const described = GPU_NAMES.map(describedGpu)
      .find(({ name }) => name === gpu)!;
    const ratio = await predicted(figure, described.machine) / figure.seconds;
    t.ok(ratio > 1 / MOST && ratio < MOST, ratio.toFixed(2));
  });
}

t.test("gpt-oss-20b on a card of 24 GB has the reported speed", async (t) => {
  const { machine } = describedGpu("rtx4090");
  const seconds = await predicted({
    model: "gpt-oss-20b",
    mesh: "ep=1",
    batch: 1,
    past: 1024,
  }, machine);
  const ratio = 1 / seconds / 225;
  t.ok(ratio > 1 / 1.5 && ratio < 1.5, ratio.toFixed(2));
});
