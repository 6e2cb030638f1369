/**
 * The cost of a plan for many ranks: the published DeepSeek-V3 (61 layers, 256 experts), from the model to a plan that
 * is compiled, verified, written, read and printed. Prints the CPU seconds of each phase, the file's bytes and the
 * text's lines.
 *
 *     npm run -s bench -- scale [--layers N] [--max-tokens N] [MESH …]     MESH: ep=8 or dp=64,ep=64
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { compile } from "../compiler/mod.ts";
import { publishedModel } from "../models/published.ts";
import { parsePlan, stringifyPlan } from "../spec/document/json.ts";
import { formatPlan } from "../spec/text/plan.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { machine } from "./measure.ts";

const MESHES = ["ep=1", "ep=8", "ep=256", "dp=64,ep=64", "ep=1024"];

/** Devices with enough memory for any part of the model. */
const LIMITS = {
  maxBufferSize: 2 ** 46,
  maxStorageBufferBindingSize: 2 ** 46,
};

const { values, positionals } = parseArgs({
  options: {
    layers: { type: "string", default: "61" },
    "max-tokens": { type: "string", default: "4096" },
  },
  allowPositionals: true,
});

const config = {
  ...JSON.parse(
    readFileSync(new URL("scale/deepseek_v3.json", import.meta.url), "utf8"),
  ) as object,
  num_hidden_layers: Number(values.layers),
};
const published = publishedModel(config);

/** Parses a mesh such as `dp=64,ep=64`. */
function meshOf(text: string): { [axis: string]: number } {
  return Object.fromEntries(
    text.split(",").map((pair) => {
      const [axis, size] = pair.split("=");
      return [axis!, Number(size)];
    }),
  );
}

/** Returns the CPU seconds of this process. */
function seconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

/** Returns the result of `work` and its CPU seconds. */
async function timed<T>(work: () => T | Promise<T>): Promise<[T, string]> {
  const start = seconds();
  const result = await work();
  return [result, `${(seconds() - start).toFixed(2)} s`];
}

// Loads the TypeScript compiler, which the language loads on first use. It is not part of the figures.
await import("@ts-morph/common");
console.log(machine());
for (const mesh of positionals.length > 0 ? positionals : MESHES) {
  const [model, build] = await timed(() =>
    published.build({
      maxTokens: Number(values["max-tokens"]),
      maxSequences: 64,
      maxContext: 4096,
    })
  );
  const [plan, compiling] = await timed(() =>
    compile(model, { mesh: meshOf(mesh), limits: LIMITS })
  );
  const [errors, verifying] = await timed(() => verifyPlan(plan));
  if (errors.length > 0) {
    throw new Error(`Cannot verify the plan of ${mesh}: ${errors[0]!.message}`);
  }
  const [json, writing] = await timed(() => stringifyPlan(plan));
  const [, reading] = await timed(() =>
    verifyPlan(parsePlan(json), { fitsSchema: true })
  );
  const [text, printing] = await timed(() => formatPlan(plan));
  const steps = plan.programs.reduce((n, { steps }) => n + steps.length, 0);
  console.log(
    `${mesh}: ${plan.ranks} ranks, ${steps} steps, ${
      Object.keys(plan.buffers).length
    } buffers, ${Object.keys(plan.kernels).length} kernels, ${
      (json.length / 1e6).toFixed(2)
    } MB, ${
      text.split("\n").length
    } lines; build ${build}, compile ${compiling}, verify ${verifying}, write ${writing}, read and verify ${reading}, print ${printing}`,
  );
}
