/** Long sums of few rows have the same bits with more lanes per workgroup. */
// needs: cpu

import t from "tap";
import {
  add,
  type CompileOptions,
  dot,
  maximum,
  model,
  rmsNorm,
  trace,
  upTo,
} from "../compiler/mod.ts";
import { compileGraph } from "../compiler/compile.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import { evaluateSize } from "../spec/size.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  type Case,
  closeDevices,
  digest,
  runCase,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

/** 66 blocks of k, the last of which is short. */
const EMBED = 2100;

/** Two projections of a norm that share a launch, two of its result, and one that is alone. */
const sums: Case = {
  stored: "bf16",
  calls: [20, 9, 3, 1].map((tokens) => ({ x: waves(tokens * EMBED, tokens) })),
  model: model({ token: upTo(20), embed: EMBED, a: 24, b: 40 }, (m) => {
    const x = m.input("x", "token embed");
    const normed = rmsNorm(x, m.param("gain", "embed"), "embed");
    const [a, b] = (["a", "b"] as const).map((of) =>
      maximum(dot(normed, m.param(of, `${of} embed`), "embed"), 0)
    );
    const y = add(x, dot(a!, m.param("back", "embed a"), "a"));
    const [c, d] = (["a", "b"] as const).map((of) =>
      dot(y, m.param(`${of} after`, `${of} embed`), "embed")
    );
    return { b: b!, c: c!, d: d! };
  }),
};

/** A wide device, with as many lanes and words of workgroup memory as some have. */
function wide(lanes: number, words: number): CompileOptions {
  return {
    tuning: TUNING.gpu,
    limits: {
      maxComputeInvocationsPerWorkgroup: lanes,
      maxComputeWorkgroupSizeX: lanes,
      maxComputeWorkgroupStorageSize: 4 * words,
      maxStorageBuffersPerShaderStage: 16,
    },
  };
}

t.test("long sums of few rows have more lanes if the device has", async (t) => {
  const lanesOf = async (options: CompileOptions) => {
    const plan = await compileGraph(trace(sums.model as never), options);
    t.strictSame(verifyPlan(plan), []);
    const lanes = (tokens: number) =>
      plan.programs[0]!.steps.flatMap((step) => {
        if (step.op !== "launch") return [];
        const { tree } = plan.kernels[step.kernel]!;
        const groups = step.workgroups.map((size) =>
          evaluateSize(size, () => tokens)
        );
        const isLong = tree.name.includes(`matmul_${EMBED}x`);
        return isLong && !groups.includes(0) ? [tree.workgroupSize] : [];
      });
    return [lanes(1), lanes(4)].map((found) => [...new Set(found)]);
  };
  t.strictSame(await lanesOf(wide(256, 8192)), [[256], [256]]);
  t.strictSame(await lanesOf(wide(512, 8192)), [[512], [512]]);
  // Only the sums of one row fit, which follow a norm.
  t.strictSame(await lanesOf(wide(512, 4096)), [[512, 256], [256]]);
});

t.test("long sums of few rows have the same bits with more lanes", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const wanted = digest(await runCase(sums, "cpu"));
  for (const options of [wide(256, 4096), wide(512, 4096), wide(1024, 8192)]) {
    t.equal(
      digest(await runCase(sums, "cpu", options)),
      wanted,
      JSON.stringify(options.limits),
    );
  }
});
