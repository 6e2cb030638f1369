/**
 * The cost of compiling: a decoder of 48 layers and 128 experts, from the model call to the verified plan of 16 ranks.
 */

import { compile } from "../compiler/mod.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { describe, machine, milliseconds } from "./measure.ts";
import { decoderModel } from "./models.ts";

const REPETITIONS = 3;

// Loads the TypeScript compiler, which the language loads on first use. It is not part of the figure.
await import("@ts-morph/common");
const times: number[] = [];
let steps = 0;
for (let i = 0; i < REPETITIONS; i++) {
  times.push(
    await milliseconds(async () => {
      const model = decoderModel({
        layers: 48,
        experts: 128,
        topK: 8,
        embed: 2048,
        ffn: 768,
      });
      const plan = await compile(model, {
        mesh: { ep: 16 },
        limits: {
          maxBufferSize: 2 ** 31,
          maxStorageBufferBindingSize: 2 ** 31 - 4,
        },
      });
      const errors = verifyPlan(plan);
      if (errors.length > 0) throw new Error(`Cannot verify: ${errors[0]}`);
      steps = plan.programs[0]!.steps.length;
    }),
  );
}
console.log(machine());
console.log(
  `48 layers, 128 experts, 16 ranks: ${steps} steps; first ${
    times[0]!.toFixed(0)
  } ms, all ${describe(times)}`,
);
