/**
 * The time of the CPU device to print, compile and instantiate every kernel of the bundled checkpoint on four ranks.
 */

import { availableParallelism } from "node:os";
import { readFileSync } from "node:fs";
import { compile } from "../compiler/mod.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import { storedDTypes } from "../engine/checkpoint/weights.ts";
import { publishedModel } from "../models/published.ts";
import { createCpuDevice, openCpuPool } from "../runtime/cpu/mod.ts";
import { openSafetensors } from "../runtime/mod.ts";
import { describe, machine, milliseconds } from "./measure.ts";

const folder = new URL("../examples/demo-lm/", import.meta.url);
const bytes = readFileSync(new URL("model.safetensors", folder));
const tensors = await openSafetensors([{
  name: "model.safetensors",
  size: bytes.length,
  read: (offset, length) =>
    Promise.resolve(bytes.subarray(offset, offset + length)),
}]);
const config = readFileSync(new URL("config.json", folder), "utf8");
const model = publishedModel(JSON.parse(config)).build({
  maxTokens: 256,
  maxSequences: 4,
  maxContext: 256,
});
const plan = await compile(model, {
  mesh: { ep: 4 },
  weights: storedDTypes(tensors),
  tuning: TUNING.cpu,
});

const times: number[] = [];
for (let i = 0; i < 5; i++) {
  const pool = await openCpuPool(availableParallelism());
  const device = await createCpuDevice({ pool });
  times.push(await milliseconds(() => device.prepare(plan.kernels)));
  device.destroy();
  await pool.close();
}
console.log(machine());
console.log(
  `${Object.keys(plan.kernels).length} kernels: first ${
    times[0]!.toFixed(0)
  } ms, all ${describe(times)}`,
);
