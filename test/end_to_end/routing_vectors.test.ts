/**
 * Recorded routers of fairscale, DeepSpeed, Tutel and Megatron match in the reference evaluator and on devices, on one
 * rank and on several.
 */
// needs: cpu, gpu
// rotates with: compiler/graph/routing, compiler/kernels/routing/router, compiler/kernels/routing/slots.ts

import t, { type Test } from "tap";
import {
  biasUpdate,
  type Model,
  model,
  route,
  type Tensor,
  zLoss,
} from "../../compiler/mod.ts";
import { readJson } from "../helpers/read_tensors.ts";
import {
  type RecordedMatrix,
  recordedOptions,
  type RouterRecord,
} from "../helpers/recorded_routers.ts";
import {
  choiceAxes,
  declareRouter,
  differencesOf,
  error,
  operandsOf,
  type Outputs,
  type RecordedRouter,
  runModel,
  TOLERANCE,
} from "../helpers/routing_vectors.ts";
import { closeDevices } from "../helpers/run_model.ts";
import { TARGETS } from "../helpers/sessions.ts";
import { gpuIsSoftware, isInGpuTurn } from "../helpers/needs.ts";
import { inTurn, oneInTurn } from "../helpers/seed.ts";

t.teardown(closeDevices);

/** A recorded router with its results. */
interface Result extends RouterRecord {
  readonly combine?: RecordedMatrix;
  readonly slots?: readonly (readonly number[])[];
  readonly aux?: number;
  readonly value?: number;
}

interface Executed {
  readonly S: number;
  readonly E: number;
  readonly logits: RecordedMatrix;
  readonly results: readonly Result[];
}

const { executed, goldens } = readJson("routing/vectors.json") as unknown as {
  readonly executed: readonly Executed[];
  readonly goldens: Goldens;
};

function recordedRouter(result: Result, i: number): RecordedRouter {
  const { noise, expert_bias: bias, combine, slots, capacity, aux } = result;
  return {
    name: `${i} ${result.preset}`,
    topK: result.k,
    options: recordedOptions(result),
    operands: {
      ...noise ? { noise: noise.data } : {},
      ...bias ? { bias: bias.data } : {},
    },
    ...combine ? { combine: combine.data } : {},
    ...slots ? { slots } : {},
    ...capacity === undefined ? {} : { capacity },
    ...aux === undefined ? {} : { loss: aux },
  };
}

/** All routers of one set of logits in one model. */
function modelOf(
  { S, E }: Pick<Executed, "S" | "E">,
  routers: readonly RecordedRouter[],
): Model {
  return model({ token: S, expert: E, ...choiceAxes(routers) }, (m) => {
    const logits = m.input("logits", "token expert");
    const outputs = routers.map((router) =>
      declareRouter(m, logits, router).outputs
    );
    return {
      ...Object.assign({}, ...outputs) as { [name: string]: Tensor },
      z: zLoss(logits, { over: "expert" }),
    };
  });
}

/** Meshes. 3 ranks shard 16 tokens and 4 experts unevenly. */
const MESHES: readonly { readonly [axis: string]: number }[] = [
  {},
  { ep: 2 },
  { ep: 3 },
  { ep: 4 },
];

/**
 * Compares a model's outputs with the recording in the reference evaluator and on all devices, and the bits of all
 * meshes of a device.
 */
async function everywhere(
  t: Test,
  { model, inputs, meshes = MESHES }: {
    readonly model: Model;
    readonly inputs: { readonly [name: string]: readonly number[] };
    readonly meshes?: typeof MESHES;
  },
  wrong: (outputs: Outputs) => string[],
): Promise<void> {
  t.same(
    wrong(await runModel(model, inputs)),
    [],
    "in the reference evaluator",
  );
  for (const { target, skip } of TARGETS) {
    if (target === "gpu" && !isInGpuTurn(t.name)) continue;
    if (skip !== false) {
      t.comment(`not run on a ${target}: ${skip}`);
      continue;
    }
    let one: Outputs | undefined;
    const rotated = [...meshes.slice(0, 1), ...inTurn(meshes.slice(1), 2)];
    const onGpu = gpuIsSoftware ? oneInTurn(meshes) : meshes;
    for (const mesh of target === "cpu" ? rotated : onGpu) {
      const title = `on a ${target}, ${JSON.stringify(mesh)}`;
      const outputs = await runModel(model, inputs, { target, mesh });
      t.same(wrong(outputs), [], title);
      t.same(outputs, one ??= outputs, `${title}: the same bits`);
    }
  }
}

for (const recorded of executed) {
  const { S, E, logits, results } = recorded;
  t.test(`${S} tokens to ${E} experts`, async (t) => {
    const routers = results.filter(({ preset }) => preset !== "z-loss")
      .map(recordedRouter);
    const z = results.find(({ preset }) => preset === "z-loss")!.value!;
    const inputs = { logits: logits.data, ...operandsOf(routers) };
    t.ok(routers.length > 30, "there are routers");
    await everywhere(
      t,
      { model: modelOf(recorded, routers), inputs },
      (outputs) => [
        ...routers.flatMap((router) =>
          differencesOf(router, outputs, { tokens: S, experts: E })
        ),
        ...error(outputs["z"]!, [z]) <= TOLERANCE ? [] : ["the z-loss"],
      ],
    );
  });
}

// --- values of the systems' own tests

interface Goldens {
  readonly fairscale_test_top2gating_seed3: {
    readonly input: RecordedMatrix;
    readonly gate_weight_EM: RecordedMatrix;
    readonly gumbel_noise: RecordedMatrix;
    readonly measured_l_aux: number;
    readonly combine: RecordedMatrix;
  };
  readonly deepspeed_topk: {
    readonly cases: readonly {
      readonly k: number;
      readonly cf: number;
      readonly min_capacity?: number;
      readonly policy?: "probs" | "position";
      readonly drop_tokens?: boolean;
      readonly logits: readonly (readonly number[])[] | "same";
      readonly cap: number;
      readonly slots: readonly (readonly number[])[];
    }[];
  };
  readonly maxtext_deepseek_routing: {
    readonly groups: number;
    readonly topk_group: number;
    readonly k: number;
    readonly biased_scores: readonly (readonly number[])[];
    readonly indices: readonly (readonly number[])[];
  };
  readonly maxtext_bias_update: {
    readonly rate: number;
    readonly topk: readonly (readonly (readonly number[])[])[];
    readonly updates: readonly number[];
  };
}

t.test("fairscale's own test, seed 3", async (t) => {
  const {
    input,
    gate_weight_EM: gate,
    gumbel_noise: noise,
    combine,
    measured_l_aux: loss,
  } = goldens.fairscale_test_top2gating_seed3;
  const [S, E] = [input.shape[0]!, gate.shape[0]!];
  const width = input.shape[1]!;
  const slots = combine.shape[2]!;
  const logits = Array.from({ length: S * E }, (_, i) => {
    const [s, e] = [Math.floor(i / E), i % E];
    return gate.data.slice(e * width, (e + 1) * width)
      .reduce((sum, w, d) => sum + w * input.data[s * width + d]!, 0);
  });
  const expected = combine.data.flatMap((w, i) =>
    w > 0
      ? [[Math.floor(i / E / slots), Math.floor(i / slots) % E, i % slots]]
      : []
  );
  const weights = Array.from(
    { length: S * E },
    (_, i) =>
      combine.data.slice(i * slots, (i + 1) * slots).reduce((a, b) => a + b),
  );
  const router: RecordedRouter = {
    name: "seed 3",
    topK: 2,
    options: { preset: "fairscale.top2" },
    operands: { noise: noise.data },
    combine: weights,
    slots: expected,
    capacity: slots,
    loss,
  };
  await everywhere(t, {
    model: modelOf({ S, E }, [router]),
    inputs: { logits, ...operandsOf([router]) },
  }, (outputs) => differencesOf(router, outputs, { tokens: S, experts: E }));
});

t.test("DeepSpeed's own test tables of top-k gating", async (t) => {
  let logits: readonly (readonly number[])[] = [];
  for (const [i, golden] of goldens.deepspeed_topk.cases.entries()) {
    if (golden.logits !== "same") logits = golden.logits;
    const [S, E] = [logits.length, logits[0]!.length];
    const { k, cf: factor, min_capacity: minimum = 1 } = golden;
    const drop = golden.policy === "probs" ? "score" : "position";
    const router: RecordedRouter = {
      name: `case ${i}`,
      topK: k,
      operands: {},
      options: {
        preset: "deepspeed.topk",
        capacity: golden.drop_tokens === false
          ? { slots: "largest" }
          : { factor, minimum, drop },
      },
      slots: golden.slots,
      capacity: golden.cap,
    };
    await everywhere(t, {
      model: modelOf({ S, E }, [router]),
      inputs: { logits: logits.flat() },
    }, (outputs) => differencesOf(router, outputs, { tokens: S, experts: E }));
  }
});

t.test("MaxText's own test of expert groups, with a tie", async (t) => {
  const { groups, topk_group: keep, k, biased_scores, indices } =
    goldens.maxtext_deepseek_routing;
  const [S, E] = [biased_scores.length, biased_scores[0]!.length];
  const choose = model({ token: S, expert: E, choice: k }, (m) => {
    const { index } = route(m.input("scores", "token expert"), {
      over: "expert",
      topK: k,
      preset: "deepseekV3",
      score: "none",
      expertGroups: { count: groups, keep },
    });
    return { index };
  });
  await everywhere(
    t,
    { model: choose, inputs: { scores: biased_scores.flat() } },
    ({ index }) =>
      Array.from(index!).join() === indices.flat().join()
        ? []
        : [`the choices are ${Array.from(index!)}`],
  );
});

t.test("MaxText's own test of bias updates", async (t) => {
  const { rate, topk, updates } = goldens.maxtext_bias_update;
  const choices = topk.flat();
  const sizes = {
    token: choices.length,
    expert: updates.length,
    choice: choices[0]!.length,
  };
  const update = model(sizes, (m) => {
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: choices[0]!.length,
      preset: "deepseekV3",
      choices: m.input("choices", "token choice", { dtype: "i32" }),
    });
    const bias = m.input("bias", "expert");
    return {
      plain: biasUpdate(bias, routing, { rate }),
      centred: biasUpdate(bias, routing, { rate, centred: true }),
    };
  });
  const mean = updates.reduce((a, b) => a + b) / updates.length;
  await everywhere(t, {
    model: update,
    inputs: {
      logits: new Array<number>(choices.length * updates.length).fill(0),
      choices: choices.flat(),
      bias: updates.map(() => 1),
    },
  }, ({ plain, centred }) => [
    ...error(plain!, updates.map((x) => 1 + x)) < 1e-7 ? [] : ["plain"],
    ...error(centred!, updates.map((x) => 1 + x - mean)) < 1e-7
      ? []
      : ["centred"],
  ]);
});
