/**
 * Scaling: the cost per token of the expert layer from 256 to 4096 tokens, and compiling and loading a decoder of 8 to
 * 64 layers on four ranks. Flags: `--adapter cpu|NUMBER` (default: auto), `--runs N`.
 *
 * Times are wall-clock times and times of the process on all cores. Other work on the machine affects the latter less.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { compile, type Model } from "../compiler/mod.ts";
import { publishedModel } from "../models/published.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { machine, median, milliseconds } from "./measure.ts";
import { expertLayer } from "./models.ts";
import { load, randomValues } from "./session.ts";
import { workFlags } from "./work.ts";

const { adapter, repetitions } = workFlags("auto");

/** Wall-clock time and time of all cores of a piece of work, in ms. */
interface Cost {
  readonly clock: number;
  readonly cores: number;
}

async function costOf(work: () => Promise<unknown>): Promise<Cost> {
  const before = process.cpuUsage();
  const clock = await milliseconds(work);
  const { user, system } = process.cpuUsage(before);
  return { clock, cores: (user + system) / 1000 };
}

function medians(costs: readonly Cost[]): Cost {
  return {
    clock: median(costs.map(({ clock }) => clock)),
    cores: median(costs.map(({ cores }) => cores)),
  };
}

/** Formats values relative to the first: `1.00 1.02 …`. */
function ratios(values: readonly number[]): string {
  return values.map((value) => (value / values[0]!).toFixed(2)).join(" ");
}

const TOKENS = [256, 512, 1024, 2048, 4096];
const LAYERS = [8, 16, 32, 64];

async function perToken(): Promise<void> {
  const benches = await Promise.all(
    TOKENS.map((tokens) =>
      load(expertLayer(tokens), { adapter, mesh: { ep: 1 } })
    ),
  );
  const inputs = TOKENS.map((tokens) => ({
    x: {
      dtype: "f32" as const,
      shape: [tokens, 512],
      data: randomValues(tokens * 512),
    },
  }));
  const costs: Cost[][] = TOKENS.map(() => []);
  for (let i = -1; i < repetitions; i++) {
    for (const [at, bench] of benches.entries()) {
      const cost = await costOf(() => bench.compute(inputs[at]!));
      if (i >= 0) costs[at]!.push(cost);
    }
  }
  const each = costs.map((list, i) => {
    const { clock, cores } = medians(list);
    const us = 1000 / TOKENS[i]!;
    console.log(
      `expert layer, ${TOKENS[i]} tokens: ${
        (clock * us).toFixed(1)
      } us a token, ${(cores * us).toFixed(1)} us of a core`,
    );
    return { clock: clock * us, cores: cores * us };
  });
  console.log(
    `expert layer, cost per token against ${TOKENS[0]} tokens: ${
      ratios(each.map(({ clock }) => clock))
    }; of cores ${ratios(each.map(({ cores }) => cores))}`,
  );
  for (const bench of benches) await bench.close();
}

/** Builds the bundled checkpoint's decoder with another number of layers and random weights. */
function decoderOf(layers: number): Model {
  const file = new URL("../examples/demo-lm/config.json", import.meta.url);
  const config = JSON.parse(readFileSync(file, "utf8")) as object;
  return publishedModel({ ...config, num_hidden_layers: layers }).build({
    maxTokens: 64,
    maxSequences: 4,
    maxContext: 128,
    next: { candidates: 1 },
  });
}

async function perLayer(): Promise<void> {
  // Loads the TypeScript compiler, which is not part of the figure.
  await import("@ts-morph/common");
  const options = { mesh: { ep: 4 } };
  await compile(decoderOf(2), options);
  const each = [];
  for (const layers of LAYERS) {
    const model = decoderOf(layers);
    const compiled = await costOf(async () => {
      verifyPlan(await compile(model, options));
    });
    let bench: Awaited<ReturnType<typeof load>> | undefined;
    const loaded = await costOf(async () => {
      bench = await load(model, { ...options, adapter });
    });
    await bench!.close();
    const [plan, all] = [compiled.cores / layers, loaded.cores / layers];
    console.log(
      `${layers} layers: compiled and verified in ${
        compiled.clock.toFixed(0)
      } ms, ${plan.toFixed(1)} ms of a core a layer; compiled and loaded in ${
        loaded.clock.toFixed(0)
      } ms, ${all.toFixed(1)} ms of a core a layer`,
    );
    each.push({ plan, all });
  }
  console.log(
    `cost per layer against ${LAYERS[0]} layers, of cores: compiling ${
      ratios(each.map(({ plan }) => plan))
    }; with loading ${ratios(each.map(({ all }) => all))}`,
  );
}

console.log(machine());
await perToken();
await perLayer();
