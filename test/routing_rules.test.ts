/** Random compositions of a router's options on meshes: kernels match the reference. */
// needs: cpu, gpu

import fc from "fast-check";
import t, { type Test } from "tap";
import { model, route, type Tensor, upTo } from "../compiler/mod.ts";
import type { RouteOptions, RoutingPreset } from "../compiler/mod.ts";
import { ruleProblem } from "../compiler/graph/routing/check_rule.ts";
import type { CapacityRule, RouteOperand } from "../compiler/graph/graph.ts";
import {
  routingRule,
  type RuleChoices,
} from "../compiler/graph/routing/presets.ts";
import {
  type Case,
  closeDevices,
  differences,
  reference,
  skip,
  waves,
} from "./helpers/run_model.ts";
import { devicesInTurn } from "./helpers/needs.ts";
import { holdsFor, RUNS } from "./helpers/seed.ts";

/** A router and its operands. */
interface Router {
  readonly choices: RuleChoices & { readonly topK: number };
  readonly operands: readonly RouteOperand[];
  readonly experts: number;
  /** Groups along the first axis; 0 means no groups. */
  readonly leading: number;
  readonly tokens: number;
  /** Seed of the inputs. */
  readonly seed: number;
  /** Tokens are sharded over all axes. */
  readonly mesh: { readonly [axis: string]: number };
  /** Logits are multiples of a quarter, so that many are equal. */
  readonly coarse?: true;
}

/** A model of one router that returns all of its results. */
function routerModel(
  { choices, operands, experts, leading, tokens }: Router,
): Case["model"] {
  const axes = {
    ...leading ? { group: leading } : {},
    token: upTo(Math.max(1, tokens)),
    expert: experts,
    choice: choices.topK,
  };
  return model(axes, (m) => {
    const names = leading ? "group token" : "token";
    const of = {
      group: names,
      mask: names,
      bias: "expert",
      noise: `${names} expert`,
      random: `${names} expert`,
      choices: `${names} choice`,
      weights: `${names} choice`,
    };
    const integerNames = ["group", "mask", "choices"];
    const operandTensors = operands.map((name) => [
      name,
      m.input(`given ${name}`, of[name] as "token", {
        dtype: integerNames.includes(name) ? "i32" : "f32",
      }),
    ]);
    const options = {
      over: "expert",
      ...choices,
      ...leading ? { group: "group" } : {},
      ...Object.fromEntries(operandTensors),
    } as RouteOptions<string, string, RoutingPreset, "slot", "choice">;
    const logits = m.input("logits", `${names} expert` as "token expert");
    const routing = route(logits as Tensor<string, "f32">, options);
    const { index, weight, chosen, first, kept } = routing;
    const slots = "capacity" in choices && choices.capacity !== "dropless";
    return {
      index,
      weight,
      chosen,
      first,
      kept,
      ...slots && "slot" in routing ? { slot: routing.slot } : {},
    };
  });
}

/** Inputs of a router. */
function inputsOf(
  { choices, operands, experts, leading, tokens, seed, coarse }: Router,
): { [name: string]: number[] } {
  const all = tokens * Math.max(1, leading);
  const numbers = (n: number, s: number) =>
    waves(n, seed + s).map((x) => coarse ? Math.round(4 * x) / 4 : x);
  const integers = (n: number, below: number, s: number) =>
    waves(n, seed + s).map((x) => Math.floor((x + 1) / 2 * below) % below);
  const inputOf: { readonly [O in RouteOperand]: () => number[] } = {
    group: () => integers(all, 3, 1).map((g) => g * 1000 - 1000),
    mask: () => integers(all, 4, 2),
    bias: () => numbers(experts, 3),
    noise: () => numbers(all * experts, 4),
    // Coarse, so that some are equal.
    random: () => numbers(all * experts, 5).map((x) => Math.round(x * 4)),
    choices: () => integers(all * choices.topK, experts, 6),
    weights: () => numbers(all * choices.topK, 7).map((x) => x + 1),
  };
  return Object.fromEntries([
    ["logits", numbers(all * experts, 0).map((x) => 2 * x)],
    ...operands.map((name) => [`given ${name}`, inputOf[name]()]),
  ]);
}

type Inputs = [{ [name: string]: number[] }];

const CAPACITY: fc.Arbitrary<CapacityRule> = fc.record({
  slots: fc.constantFrom(
    ...[0, 2, "largest", "floor", "ceil", "ceilF32", "floorOfCeil"] as const,
  ),
  factor: fc.constantFrom(0.5, 1, 1.3),
  per: fc.constantFrom("choice", "token"),
  minimum: fc.constantFrom(0, 3),
  alignment: fc.constantFrom(1, 4),
  drop: fc.constantFrom("position", "score", "random"),
  order: fc.constantFrom("choice", "token"),
  prioritised: fc.boolean(),
}).map(({ factor, per, ...rule }): CapacityRule =>
  typeof rule.slots === "number" || rule.slots === "largest"
    ? rule
    : { ...rule, factor, per }
);

/** Valid routers. */
const ROUTERS: fc.Arbitrary<Router> = fc.record({
  choices: fc.record({
    topK: fc.constantFrom(1, 2, 3),
    score: fc.constantFrom(
      "softmax",
      "chosenSoftmax",
      "sigmoid",
      "sqrtSoftplus",
      "none",
    ),
    normalize: fc.constantFrom("none", "chosen", "kept"),
    epsilon: fc.constantFrom(0, 1e-9),
    minSum: fc.option(fc.constant(0.5), { nil: undefined }),
    scale: fc.constantFrom(1, 2.5),
    noisy: fc.constantFrom("all", "second"),
    expertGroups: fc.option(
      fc.record({
        count: fc.constant(4),
        keep: fc.constantFrom(2, 3),
        best: fc.constantFrom(1, 2),
      }),
      { nil: undefined },
    ),
    capacity: fc.option(CAPACITY, { nil: "dropless" as const }),
  }),
  operands: fc.subarray<RouteOperand>(
    ["group", "noise", "bias", "mask", "choices", "weights"],
  ),
  experts: fc.constantFrom(8, 12),
  leading: fc.constantFrom(0, 0, 2),
  tokens: fc.constantFrom(0, 1, 7, 40, 70, 150),
  seed: fc.nat(1000),
  mesh: fc.constantFrom<Router["mesh"]>(
    ...[{}, {}, { ep: 2 }, { ep: 3 }, { dp: 2, ep: 2 }],
  ),
}).map(
  ({ choices: { expertGroups, minSum, ...choices }, ...router }): Router => {
    const { capacity } = choices;
    const random = capacity !== "dropless" && capacity.drop === "random";
    return {
      ...router,
      choices: {
        ...choices,
        ...expertGroups ? { expertGroups } : {},
        ...minSum === undefined ? {} : { minSum },
      },
      operands: [
        ...router.operands.filter((name) =>
          name !== "group" || !router.leading
        ),
        ...random ? ["random" as const] : [],
      ],
    };
  },
).filter(({ choices, operands }) =>
  ruleProblem(
    routingRule({ ...choices, given: operands.includes("choices") }),
    operands,
  ) === undefined
);

/**
 * Whether choices and slots do not depend on last bits, which the reference rounds differently than f32: small changes
 * of the logits in both directions give the same result.
 */
async function isClear(of: Case, [inputs]: Inputs): Promise<boolean> {
  const { logits } = inputs;
  const nudges = waves(logits!.length, 17);
  const [up, down] = await Promise.all([1e-5, -1e-5].map(async (step) => {
    const nudged = logits!.map((x, i) => x + step * nudges[i]!);
    const calls = [{ ...inputs, logits: nudged }];
    const [outputs] = await reference({ ...of, calls });
    return [outputs!["index"]!, outputs!["slot"]]
      .map((value) => value?.data.join()).join(";");
  }));
  return up === down;
}

/** Routers with exact sums, so that ties are ties in any arithmetic. */
const TIED: fc.Arbitrary<Router> = ROUTERS.map((router) => ({
  ...router,
  coarse: true,
  choices: { ...router.choices, score: "none", normalize: "none", scale: 1 },
}));

/** Compares random routers on a device with the reference. */
async function compareRouters(
  t: Test,
  kind: "cpu" | "gpu",
  { runs, routers }: {
    readonly runs: number;
    readonly routers: fc.Arbitrary<Router>;
  },
): Promise<void> {
  let compared = 0;
  const check = async (router: Router) => {
    const calls: Inputs = [inputsOf(router)];
    const of: Case = {
      model: routerModel(router),
      calls,
      lengths: { token: router.tokens },
    };
    fc.pre(router.coarse || await isClear(of, calls));
    const wrong = await differences(of, kind, { mesh: router.mesh });
    if (wrong.length > 0) throw new Error(wrong.join("\n"));
    compared++;
  };
  await holdsFor(t, routers, { check, runs });
  t.equal(compared, runs * RUNS, "the number of compared routers");
}

const KINDS = [
  { kind: "cpu", title: "", skip: false },
  { kind: "gpu", title: ", on a GPU", skip },
] as const;

const kinds = devicesInTurn("routing_rules");

for (const { kind, title, skip } of KINDS) {
  if (!kinds.includes(kind)) continue;
  const runs = kind === "cpu" ? 60 : 5;
  t.test(`any router matches the reference${title}`, {
    skip,
  }, async (t) => {
    await compareRouters(t, kind, { runs, routers: ROUTERS });
  });
  t.test(
    `the first of equal experts is chosen, and the first of equal tokens keeps its slot${title}`,
    {
      skip,
    },
    async (t) => {
      await compareRouters(t, kind, { runs: runs / 5 * 3, routers: TIED });
    },
  );
}

t.teardown(closeDevices);
