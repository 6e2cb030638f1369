/**
 * Gradients of complete layers on one rank and several, and in the reference evaluator, against recorded runs of
 * fairscale and DeepSpeed on several ranks.
 */
// needs: cpu, gpu

import t from "tap";
import {
  add,
  combine,
  dispatch,
  dot,
  embedding,
  maximum,
  mean,
  model,
  mul,
  route,
  type RouteOptions,
  type RoutingPreset,
  softmax,
  sum,
  type Tensor,
} from "../compiler/dsl/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { graphWithGradients } from "./helpers/gradients.ts";
import { readTensors } from "./helpers/read_tensors.ts";
import { runGraph } from "./helpers/run_graph.ts";
import { closeDevices } from "./helpers/run_model.ts";

t.teardown(closeDevices);

/** A recorded layer. Recorded ranks, each with its tokens, are routing groups here. */
interface Layer {
  readonly file: string;
  readonly topK: number;
  readonly options: Partial<
    RouteOptions<
      "group token expert",
      "expert",
      RoutingPreset,
      "slot",
      "choice"
    >
  >;
  /** Recorded random numbers, by the routing option that they are used for. */
  readonly drawn?: { readonly [recorded: string]: "noise" | "random" };
  /** The choices that the balancing loss counts, and its factor. */
  readonly counts: "first" | "chosen";
  readonly times: (experts: number) => number;
  readonly weight: number;
}

const FAIRSCALE = [
  "w1-e4",
  "w2-e4",
  "w2-e4-noise",
  "w4-e4",
  "w4-e8",
  "w4-e8-noise",
]
  .map((name): Layer => ({
    file: `fairscale/${name}`,
    topK: 2,
    options: { preset: "fairscale.top2" },
    drawn: { gumbel: "noise" },
    counts: "first",
    times: (experts) => 1 / experts,
    weight: 0.37,
  }));

function deepspeed(
  name: string,
  topK: number,
  capacity: NonNullable<Layer["options"]["capacity"]>,
): Layer {
  const preset =
    ({ 1: "deepspeed.top1", 2: "deepspeed.top2" } as const)[topK] ??
      "deepspeed.topk";
  return {
    file: `deepspeed/moelayer-${name}`,
    topK,
    options: { preset, capacity },
    ...topK === 1 ? { drawn: { rts_uniform: "random" } } : {},
    counts: topK > 2 ? "chosen" : "first",
    times: (experts) => topK > 2 ? experts / topK : experts,
    weight: 0.25,
  };
}

const LAYERS = [
  ...FAIRSCALE,
  deepspeed("ep1-e4-top2", 2, { factor: 1, minimum: 2 }),
  deepspeed("ep2-e4-top1", 1, { factor: 1, minimum: 2 }),
  deepspeed("ep2-e8-top2-nodrop", 2, { slots: "largest" }),
  deepspeed("ep4-e4-top2-nodrop", 2, { slots: "largest" }),
  deepspeed("ep4-e8-top2", 2, { factor: 1, minimum: 4 }),
  deepspeed("ep4-e8-top3", 3, { factor: 0.75, minimum: 2 }),
];

/** Outputs of a graph. */
interface Outputs {
  readonly [name: string]: { readonly data: ArrayLike<number> };
}

const MESHES = [
  { mesh: { dp: 1, ep: 1 } },
  { mesh: { dp: 1, ep: 2 } },
  { mesh: { dp: 1, ep: 4 } },
  { mesh: { dp: 2, ep: 2 } },
];

/** Concatenates a tensor of all recorded ranks. */
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

for (const layer of LAYERS) {
  t.test(`gradients of ${layer.file}`, async (t) => {
    const recorded = readTensors(`${layer.file}.safetensors`);
    const [embed, hidden] = [8, 12];
    const experts = recorded["gate.weight"]!.length / embed;
    const x = allRanks(recorded, "input");
    const groups = Object.keys(recorded).filter((name) =>
      /^rank\d+\.input$/.test(name)
    ).length;
    const sizes = {
      group: groups,
      token: x.length / groups / embed,
      row: x.length / embed,
      embed,
      hidden,
      expert: experts,
    };
    const net = model(sizes, (m) => {
      // A parameter is replicated; its rows are sharded.
      const rows = embedding(
        m.param("x", "row embed"),
        m.input("rows", "group token", { dtype: "i32" }),
        "row",
      );
      const logits = dot(rows, m.param("gate", "expert embed"), "embed");
      const drawn = Object.values(layer.drawn ?? {}).map((name) => [
        name,
        m.input(name, "group token expert"),
      ]);
      const routing = route(logits, {
        over: "expert",
        topK: layer.topK,
        group: "group",
        ...layer.options,
        ...Object.fromEntries(drawn) as typeof layer.options,
      });
      const w = <A extends string>(name: string, axes: A) =>
        m.param(name, axes as never) as Tensor<A, "f32">;
      const inner = maximum(
        add(
          dot(
            dispatch(rows, routing),
            w("fc1.weight", "expert hidden embed"),
            "embed",
          ),
          w("fc1.bias", "expert hidden"),
        ),
        0,
      );
      const done = add(
        dot(inner, w("fc2.weight", "expert embed hidden"), "hidden"),
        w("fc2.bias", "expert embed"),
      );
      const y = combine(done, routing);
      const pull = dot(y, m.input("pull", "group token embed"), "token embed");
      const balance = dot(
        mean(softmax(logits, "expert"), "token"),
        mean(routing[layer.counts], "token"),
        "expert",
      );
      const aux = mul(balance, layer.times(experts));
      return {
        y,
        aux,
        loss: sum(add(pull, mul(aux, layer.weight)), "group"),
      };
    });
    const stacked = (name: string, suffix = "") =>
      Array.from(
        { length: experts },
        (_, e) => recorded[`expert${e}.${name}${suffix}`]!,
      ).flat();
    const weights = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];
    const graph = await graphWithGradients(net);
    const inputs = {
      params: {
        x,
        gate: recorded["gate.weight"]!,
        ...Object.fromEntries(weights.map((name) => [name, stacked(name)])),
      },
      inputs: {
        rows: Array.from({ length: x.length / embed }, (_, i) => i),
        pull: allRanks(recorded, "grad_output"),
        ...Object.fromEntries(
          Object.entries(layer.drawn ?? {}).map(([from, to]) => [
            to,
            allRanks(recorded, from),
          ]),
        ),
      },
    };
    const gate = new Float64Array(experts * embed);
    allRanks(recorded, "grad_gate_weight_local").forEach((g, i) =>
      gate[i % gate.length]! += g
    );
    const wanted = {
      y: allRanks(recorded, "output"),
      aux: allRanks(recorded, "l_aux"),
      "grad.x": allRanks(recorded, "grad_input"),
      "grad.gate": [...gate],
      ...Object.fromEntries(
        weights.map((name) => [`grad.${name}`, stacked(name, ".grad")]),
      ),
    };
    const holds = (where: string, outputs: Outputs) => {
      for (const [name, want] of Object.entries(wanted)) {
        const got = outputs[name]!.data;
        const off = want.map((v, i) => Math.abs(v - got[i]!));
        const error = Math.max(...off) / Math.max(...want.map(Math.abs));
        t.ok(error < 1e-5, `${where}: ${name} off by ${error}`);
      }
    };
    holds("in the reference", evaluate(graph, inputs).outputs);
    for (const options of MESHES) {
      // Groups are sharded if ranks divide them, otherwise tokens.
      const ranks = Object.values(options.mesh ?? {}).reduce(
        (a, b) => a * b,
        1,
      );
      const place = groups % ranks === 0
        ? { expert: "ep", group: ["dp", "ep"] }
        : { expert: "ep", token: ["dp", "ep"] };
      const where = JSON.stringify({ ...options, place });
      holds(where, await runGraph(graph, inputs, { ...options, place }));
    }
  });
}
