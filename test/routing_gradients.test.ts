/** Gradients through routers in the reference evaluator, against recordings of other implementations. */
// rotates with: compiler/graph/routing, compiler/graph/gradients/moe.ts, compiler/graph/evaluate/

import t from "tap";
import {
  balancingLoss,
  dot,
  embedding,
  model,
  route,
  type Scope,
  sum,
} from "../compiler/dsl/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { graphWithGradients } from "./helpers/gradients.ts";
import { readJson } from "./helpers/read_tensors.ts";
import {
  type RecordedMatrix,
  recordedOptions,
  type RouterRecord,
} from "./helpers/recorded_routers.ts";
import { runGraph } from "./helpers/run_graph.ts";
import { closeDevices } from "./helpers/run_model.ts";

t.teardown(closeDevices);

/**
 * Meshes that run besides the reference, in rotation, with tokens sharded over all ranks. test/training_mesh.test.ts
 * tests gradients of routers on every mesh.
 */
const MESHES = [{ ep: 1 }, { ep: 2 }, { dp: 2, ep: 2 }];

/** A router on a set of logits; `combine` is [token, expert]. */
interface Result extends RouterRecord {
  readonly grad_logits_of_sum_combine_times_R?: RecordedMatrix;
  readonly aux?: number;
  readonly grad_logits_of_aux?: RecordedMatrix;
}

interface Executed {
  readonly S: number;
  readonly E: number;
  readonly logits: RecordedMatrix;
  readonly R: RecordedMatrix;
  readonly results: readonly Result[];
}

type Net = Scope<"token" | "row" | "expert" | "choice">;

/** Logits by an embedding: the parameter is replicated, its rows are sharded. */
function logitsOf(m: Net) {
  const rows = m.input("rows", "token", { dtype: "i32" });
  return embedding(m.param("logits", "row expert"), rows, "row");
}

/** Max difference relative to the largest expected magnitude. */
function distance(got: ArrayLike<number>, want: readonly number[]): number {
  const off = want.map((x, i) => Math.abs(x - got[i]!));
  return Math.max(...off) / Math.max(...want.map(Math.abs));
}

const { executed } = readJson("routing/vectors.json") as unknown as {
  readonly executed: readonly Executed[];
};

for (const { S, E, logits, R, results } of executed) {
  t.test(`routers of ${S} tokens to ${E} experts`, async (t) => {
    for (const [i, result] of results.entries()) {
      const want = result.grad_logits_of_sum_combine_times_R;
      if (want === undefined) continue;
      const options = recordedOptions(result);
      const { noise, expert_bias: bias, k } = result;
      const routerOf = (m: Net) =>
        route(logitsOf(m), {
          over: "expert",
          topK: k!,
          preset: "olmoe",
          ...options,
          ...noise ? { noise: m.input("noise", "token expert") } : {},
          ...bias ? { bias: m.input("bias", "expert") } : {},
        });
      const sizes = { token: S, row: S, expert: E, choice: k! };
      const net = model(sizes, (m) => {
        const { index, weight } = routerOf(m);
        const pulls = m.input("R", "token expert");
        const own = embedding(pulls, index, "expert");
        return { loss: sum(dot(weight, own, "choice"), "token") };
      });
      const balancing = model(sizes, (m) => ({
        loss: balancingLoss(logitsOf(m), routerOf(m), {
          over: "expert",
        }),
      }));
      const inputs = {
        params: { logits: logits.data },
        inputs: {
          R: R.data,
          rows: Array.from({ length: S }, (_, i) => i),
          ...noise ? { noise: noise.data } : {},
          ...bias ? { bias: bias.data } : {},
        },
      };
      const weightsGraph = await graphWithGradients(net);
      const lossGraph = await graphWithGradients(balancing);
      for (const mesh of [undefined, MESHES[i % MESHES.length]!]) {
        const run = async (graph: typeof lossGraph) =>
          mesh
            ? await runGraph(graph, inputs, { mesh })
            : evaluate(graph, inputs).outputs;
        const name = `${result.preset}, ${k} of ${result.capacity}${
          mesh ? `, ${JSON.stringify(mesh)}` : ""
        }`;
        const weights = await run(weightsGraph);
        const error = distance(weights["grad.logits"]!.data, want.data);
        t.ok(error < 1e-4, `${name}: off by ${error}`);
        if (result.grad_logits_of_aux === undefined) continue;
        const aux = await run(lossGraph);
        const value = distance(aux["loss"]!.data, [result.aux!]);
        t.ok(value < 1e-5, `${name}: balancing loss off by ${value}`);
        const slope = distance(
          aux["grad.logits"]!.data,
          result.grad_logits_of_aux.data,
        );
        // Recorded to seven decimals, with values as small as 1e-4.
        t.ok(slope < 1e-3, `${name}: its gradient off by ${slope}`);
      }
    }
  });
}
