/** Recorded layers with capacity: gates and layers of DeepSpeed, layers and losses of fairscale. */
// needs: cpu, gpu
// rotates with: compiler/graph/routing, compiler/kernels/routing/router, compiler/kernels/routing/slots.ts

import t, { type Test } from "tap";
import {
  add,
  balancingLoss,
  combine,
  dispatch,
  dot,
  maximum,
  type Model,
  model,
  route,
  type RouteOptions,
  type RoutingPreset,
  sum,
  type Tensor,
} from "../../compiler/mod.ts";
import { readJson, readTensors } from "../helpers/read_tensors.ts";
import {
  choiceAxes,
  declareRouter,
  differencesOf,
  error,
  operandsOf,
  type Outputs,
  type RecordedRouter,
  type RouterOptions,
  runModel,
  TOLERANCE,
} from "../helpers/routing_vectors.ts";
import { closeDevices } from "../helpers/run_model.ts";
import { TARGETS } from "../helpers/sessions.ts";
import { isInGpuTurn } from "../helpers/needs.ts";
import { inTurn } from "../helpers/seed.ts";

t.teardown(closeDevices);

/** Maximum error of outputs, which are long sums. */
const OUTPUT_TOLERANCE = 1e-5;

type Meshes = readonly { readonly [axis: string]: number }[];

interface Run {
  readonly model: Model;
  readonly inputs: { readonly [name: string]: readonly number[] };
  readonly weights: string;
  readonly meshes: Meshes;
  /** Kinds of devices. Default: all. */
  readonly targets?: readonly string[];
}

/**
 * Compares a model with the recording in the reference evaluator and on all devices, and the bits of all meshes of a
 * device.
 */
async function everywhere(
  t: Test,
  { model, inputs, weights, meshes, targets = ["cpu", "gpu"] }: Run,
  wrong: (outputs: Outputs) => string[],
): Promise<void> {
  const byReference = await runModel(model, inputs, { weights });
  t.same(wrong(byReference), [], "in the reference evaluator");
  for (const { target, skip } of TARGETS) {
    if (!targets.includes(target)) continue;
    if (target === "gpu" && !isInGpuTurn(t.name)) continue;
    if (skip !== false) {
      t.comment(`not run on a ${target}: ${skip}`);
      continue;
    }
    let one: Outputs | undefined;
    const rotated = [...meshes.slice(0, 1), ...inTurn(meshes.slice(1), 2)];
    for (const mesh of target === "cpu" ? rotated : meshes.slice(-1)) {
      const title = `on a ${target}, ${JSON.stringify(mesh)}`;
      const outputs = await runModel(model, inputs, { target, weights, mesh });
      t.same(wrong(outputs), [], title);
      t.same(outputs, one ??= outputs, `${title}: the same bits`);
    }
  }
}

/** Computes relu(x · fc1 + bias) · fc2 + bias for each expert. */
function reluExperts<A extends string>(
  sent: Tensor<A, "f32">,
  weight: (name: string, axes: string) => Tensor,
): Tensor<string, "f32"> {
  const w = (name: string, axes: string) =>
    weight(name, axes) as Tensor<string, "f32">;
  const inner = dot(
    sent as Tensor<string, "f32">,
    w("fc1.weight", "expert ffn embed"),
    "embed",
  );
  const hidden = maximum(add(inner, w("fc1.bias", "expert ffn")), 0);
  const outer = dot(hidden, w("fc2.weight", "expert embed ffn"), "ffn");
  return add(outer, w("fc2.bias", "expert embed"));
}

// --- DeepSpeed's gates

interface Gate {
  readonly name: string;
  readonly fn: "top1gating" | "top2gating" | "topkgating";
  readonly S: number;
  readonly E: number;
  readonly M: number;
  readonly H: number;
  readonly capacity: number;
  readonly kwargs: {
    readonly k?: number;
    readonly capacity_factor: number;
    readonly min_capacity: number;
    readonly drop_tokens: boolean;
    readonly use_rts?: boolean;
    readonly drop_policy?: "probs" | "position";
  };
}

const GATES = readJson("deepspeed/gating.json") as unknown as readonly Gate[];
const GATE_WEIGHTS = "deepspeed/gating.safetensors";
const gating = readTensors(GATE_WEIGHTS);

/** Returns the choices of a recorded sparse routing [choice, token] that are not dropped. */
function sparse(indices: readonly number[], tokens: number) {
  return indices.flatMap((expert, i) =>
    expert < 0 ? [] : [{ i, token: i % tokens, expert }]
  );
}

function recordedGate({ name, fn, kwargs, S, E, capacity }: Gate) {
  const of = (tensor: string) => gating[`${name}.${tensor}`];
  const { capacity_factor: factor, min_capacity: minimum } = kwargs;
  const drop = fn === "topkgating"
    ? kwargs.drop_policy === "position" ? "position" : "score"
    : kwargs.use_rts
    ? "random"
    : "position";
  const operands = {
    noise: of("gumbel"),
    random: drop === "random" ? of("rts_uniform") : undefined,
    mask: of("used_token"),
  };
  const chosen = sparse(of("route_indices")!, S);
  const weights = new Array<number>(S * E).fill(0);
  for (const { i, token, expert } of chosen) {
    weights[token * E + expert] = of("route_gates")![i]!;
  }
  const preset = { top1gating: "top1", top2gating: "top2", topkgating: "topk" };
  const router: RecordedRouter = {
    name,
    topK: { top1gating: 1, top2gating: 2, topkgating: kwargs.k! }[fn],
    options: {
      preset: `deepspeed.${preset[fn]}` as "deepspeed.topk",
      capacity: kwargs.drop_tokens
        ? { factor, minimum, drop }
        : { slots: "largest", drop },
    },
    operands: Object.fromEntries(
      Object.entries(operands).filter(([, data]) => data !== undefined),
    ),
    combine: weights,
    slots: chosen.map(({ i, token, expert }) => [
      ...[token, expert],
      of("route_locations")![i]!,
    ]),
    capacity,
    loss: of("l_aux")![0]!,
    counts: of("exp_counts")!,
  };
  return router;
}

/** All gates with one size, each with separate experts. */
function gatesModel(
  { S, E, M, H }: Gate,
  routers: readonly RecordedRouter[],
): Model {
  const sizes = { token: S, expert: E, embed: M, ffn: H };
  return model({ ...sizes, ...choiceAxes(routers) }, (m) => {
    const outputs = routers.map((router) => {
      const { name } = router;
      const logits = m.input(`${name} logits`, "token expert");
      const { routing, outputs } = declareRouter(m, logits, router);
      const sent = dispatch(m.input(`${name} tokens`, "token embed"), routing);
      const done = reluExperts(
        sent,
        (tensor, axes) =>
          m.param(`${name}.expert{expert}.${tensor}`, axes as "expert embed"),
      );
      return { ...outputs, [`${name} output`]: combine(done, routing) };
    });
    return Object.assign({}, ...outputs) as { [name: string]: Tensor };
  });
}

/** Gates per model: a plan of all would be large. */
const AT_ONCE = 10;

t.equal(GATES.length, 60, "gates");
for (let at = 0; at < GATES.length; at += AT_ONCE) {
  const gates = GATES.slice(at, at + AT_ONCE);
  const { S, E } = gates[0]!;
  const title = `gates ${at} to ${at + AT_ONCE - 1}`;
  t.test(`DeepSpeed's ${title}: ${S} tokens to ${E} experts`, async (t) => {
    t.ok(gates.every((gate) => gate.S === S && gate.E === E), "equal sizes");
    const routers = gates.map(recordedGate);
    const data = gates.flatMap(({ name }) => [
      [`${name} logits`, gating[`${name}.logits`]!],
      [`${name} tokens`, gating[`${name}.tokens`]!],
    ]);
    const run: Run = {
      model: gatesModel(gates[0]!, routers),
      inputs: { ...Object.fromEntries(data), ...operandsOf(routers) },
      weights: GATE_WEIGHTS,
      meshes: [{}, { ep: 2 }, { ep: 4 }],
      // A GPU compiles a pipeline for every kernel of every gate, so it runs only some.
      ...at % 30 === 0 ? {} : { targets: ["cpu"] },
    };
    await everywhere(t, run, (outputs) =>
      routers.flatMap((router) => {
        const wanted = gating[`${router.name}.output`]!;
        const off = error(outputs[`${router.name} output`]!, wanted);
        return [
          ...differencesOf(router, outputs, { tokens: S, experts: E }),
          ...off <= OUTPUT_TOLERANCE
            ? []
            : [`${router.name}: error of outputs is ${off}`],
        ];
      }));
  });
}

// --- layers of several ranks, which are routing groups here

interface Layer {
  readonly file: string;
  readonly topK: number;
  readonly options: RouterOptions;
  /** Names of the recorded random operands. */
  readonly drawn?: { readonly [operand in "noise" | "random"]?: string };
}

const EMBED = 8;

function deepspeed(
  name: string,
  topK: 1 | 2 | 3,
  capacity: NonNullable<RouterOptions["capacity"]>,
): Layer {
  const which = ({ 1: "top1", 2: "top2", 3: "topk" } as const)[topK];
  return {
    file: `deepspeed/moelayer-${name}.safetensors`,
    topK,
    options: { preset: `deepspeed.${which}`, capacity },
    ...topK === 1 ? { drawn: { random: "rts_uniform" } } : {},
  };
}

const fairscale = (name: string): Layer => ({
  file: `fairscale/${name}.safetensors`,
  topK: 2,
  options: { preset: "fairscale.top2" },
  drawn: { noise: "gumbel" },
});

const LAYERS: readonly Layer[] = [
  deepspeed("ep1-e4-top2", 2, { factor: 1, minimum: 2 }),
  deepspeed("ep2-e4-top1", 1, { factor: 1, minimum: 2 }),
  deepspeed("ep2-e8-top2-nodrop", 2, { slots: "largest" }),
  deepspeed("ep4-e4-top2-nodrop", 2, { slots: "largest" }),
  deepspeed("ep4-e8-top2", 2, { factor: 1, minimum: 4 }),
  deepspeed("ep4-e8-top3", 3, { factor: 0.75, minimum: 2 }),
  ...["w1-e4", "w2-e4", "w2-e4-noise", "w4-e4", "w4-e8", "w4-e8-noise"]
    .map(fairscale),
];

/** Returns a tensor of all ranks, concatenated. */
function allRanks(
  recorded: { readonly [name: string]: number[] },
  name: string,
): number[] {
  const all: number[] = [];
  for (let rank = 0; `rank${rank}.${name}` in recorded; rank++) {
    all.push(...recorded[`rank${rank}.${name}`]!);
  }
  return all;
}

type LayerOptions = Partial<
  RouteOptions<"group token expert", "expert", RoutingPreset, "slot", "choice">
>;

function layerModel(
  sizes: { group: number; token: number; expert: number },
  { topK, options, drawn = {} }: Layer,
): Model {
  return model({ ...sizes, embed: EMBED, ffn: 12 }, (m) => {
    const x = m.input("input", "group token embed");
    const logits = dot(x, m.param("gate.weight", "expert embed"), "embed");
    const operandInputs = Object.keys(drawn).map((operand) => [
      operand,
      m.input(operand, "group token expert"),
    ]);
    const routing = route(logits, {
      over: "expert",
      topK,
      group: "group",
      preset: "deepspeed.topk",
      ...options as unknown as LayerOptions,
      ...Object.fromEntries(operandInputs) as LayerOptions,
    });
    const sent = dispatch(x, routing);
    const done = reluExperts(
      sent,
      (name, axes) => m.param(`expert{expert}.${name}`, axes as "expert embed"),
    );
    const { index, weight } = routing;
    return {
      output: combine(done as typeof sent, routing),
      index,
      weight,
      slot: (routing as { slot: Tensor }).slot,
      loss: balancingLoss(logits, routing, { over: "expert", per: "group" }),
      counts: sum(routing.chosen, "token"),
    };
  });
}

/**
 * Returns choices that are not dropped as `group,token,expert,slot`, with their weights. Recordings list them by choice
 * and token, or as a mask over all slots.
 */
function recordedChoices(
  recorded: { readonly [name: string]: number[] },
  { group, token, expert }: { group: number; token: number; expert: number },
): Map<string, number> {
  const kept = new Map<string, number>();
  for (let g = 0; g < group; g++) {
    const of = (name: string) => recorded[`rank${g}.${name}`];
    for (const { i, ...to } of sparse(of("route_indices") ?? [], token)) {
      const slot = of("route_locations")![i];
      const key = [g, to.token, to.expert, slot].join();
      kept.set(key, of("route_gates")![i]!);
    }
    const slots = (of("dispatch_mask")?.length ?? 0) / token / expert;
    of("dispatch_mask")?.forEach((taken, i) => {
      if (taken === 0) return;
      const choice = Math.floor(i / slots);
      const key = [g, Math.floor(choice / expert), choice % expert, i % slots];
      kept.set(key.join(), of("combine_weights")![i]!);
    });
  }
  return kept;
}

/** Returns the differences between a run's choices and the recording. */
function otherChoices(
  kept: ReadonlyMap<string, number>,
  { index, slot, weight }: Outputs,
  { token, topK }: { token: number; topK: number },
): string[] {
  const found = Array.from(slot!).flatMap((choice, i) => {
    const at = Math.floor(i / topK);
    const key = [Math.floor(at / token), at % token, index![i], choice].join();
    return choice < 0 ? [] : [[key, weight![i]!] as const];
  });
  const wrong = found.filter(([key, w]) =>
    !(Math.abs((kept.get(key) ?? Infinity) - w) <= TOLERANCE)
  );
  return [
    ...wrong.map(([key]) => `choice ${key} differs`),
    ...found.length === kept.size ? [] : [`${found.length} choices are kept`],
  ];
}

for (const layer of LAYERS) {
  t.test(layer.file, async (t) => {
    const recorded = readTensors(layer.file);
    const group = allRanks(recorded, "l_aux").length;
    const expert = recorded["gate.weight"]!.length / EMBED;
    const input = allRanks(recorded, "input");
    const sizes = { group, token: input.length / group / EMBED, expert };
    const drawn = Object.entries(layer.drawn ?? {}).map(([operand, name]) => [
      operand,
      allRanks(recorded, name),
    ]);
    const kept = recordedChoices(recorded, sizes);
    t.ok(kept.size > sizes.group * sizes.token / 2, "choices are recorded");
    const run: Run = {
      model: layerModel(sizes, layer),
      inputs: { input, ...Object.fromEntries(drawn) },
      weights: layer.file,
      // With more ranks than groups, some ranks have no tokens.
      meshes: [{}, { ep: 2 }, { ep: 4 }],
    };
    await everywhere(t, run, (outputs) => {
      const off = {
        output: error(outputs["output"]!, allRanks(recorded, "output")),
        loss: error(outputs["loss"]!, allRanks(recorded, "l_aux")),
      };
      const counts = allRanks(recorded, "exp_counts");
      return [
        ...off.output <= OUTPUT_TOLERANCE ? [] : [`outputs: ${off.output}`],
        ...off.loss <= TOLERANCE ? [] : [`losses: ${off.loss}`],
        ...otherChoices(kept, outputs, { ...sizes, topK: layer.topK }),
        ...counts.length && error(outputs["counts"]!, counts) > 0
          ? ["counts"]
          : [],
      ];
    });
  });
}
