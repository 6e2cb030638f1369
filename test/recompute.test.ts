/** Recomputed blocks: the same bits with less memory, as predicted. */
// needs: cpu
// rotates with: compiler/dsl/recompute.ts, compiler/graph/repeat.ts, compiler/graph/gradients/gradients.ts, compiler/sharding/recompute_views.ts

import t from "tap";
import {
  add,
  combine,
  dispatch,
  dot,
  map,
  mean,
  model,
  recompute,
  route,
  sum,
  tanh,
  type Tensor,
  upTo,
} from "../compiler/mod.ts";
import { onRank } from "../spec/mod.ts";
import { gradientsHold, graphWithGradients } from "./helpers/gradients.ts";
import { countedRun } from "./helpers/counted_run.ts";
import {
  type Case,
  closeDevices,
  digest,
  matches,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

type Rows = Tensor<"token embed", "f32">;

/** Layers of a wide function or of experts, each in a recomputed block. */
function layers(
  kind: "wide" | "experts",
  { layers = 6, wide = 32, tokens = 24 } = {},
) {
  const sizes = { token: upTo(tokens), embed: 4, wide, expert: 4 };
  return model(sizes, (m) => {
    const block = (x: Rows, layer: number): Rows => {
      const w = (name: string) => `layers.${layer}.${name}`;
      if (kind === "wide") {
        const hidden = dot(x, m.param(w("up"), "embed wide"), "embed");
        return dot(tanh(hidden), m.param(w("down"), "wide embed"), "wide");
      }
      const logits = dot(x, m.param(w("router"), "expert embed"), "embed");
      const routing = route(logits, { over: "expert", topK: 2 });
      const hidden = dot(
        dispatch(tanh(x), routing),
        m.param(w("{expert}.up"), "expert embed wide"),
        "embed",
      );
      const y = dot(
        map((v) => v / (1 + Math.exp(-v)), hidden),
        m.param(w("{expert}.down"), "expert wide embed"),
        "wide",
      );
      return combine(y, routing) as Tensor as Rows;
    };
    let x: Rows = m.input("x", "token embed");
    for (let layer = 0; layer < layers; layer++) {
      x = add(x, recompute(x, (x) => block(x, layer)));
    }
    return { loss: mean(sum(map((v) => v * v, x), "embed"), "token") };
  });
}

for (const kind of ["wide", "experts"] as const) {
  for (const mesh of kind === "wide" ? [{}] : [{}, { dp: 2, ep: 2 }]) {
    t.test(`${kind} on ${JSON.stringify(mesh)}`, async (t) => {
      const saved: Case = {
        model: await graphWithGradients(layers(kind), { repeats: false }),
      };
      const recomputed: Case = {
        model: await graphWithGradients(layers(kind)),
      };
      await matches(t, recomputed, "cpu", [{ mesh }]);
      const run = (of: Case) => countedRun(t, of, { mesh, sharing: "shared" });
      const [first, second] = [await run(saved), await run(recomputed)];
      t.equal(digest(second.results), digest(first.results), "the same bits");
      const [all, less] = [first, second].map(({ plan }) =>
        onRank(plan.peakBytes, 0)
      );
      t.ok(less! < all!, `${less} of ${all} bytes`);
      t.comment(`${less} of ${all} bytes`);
      const exchanges = ({ plan }: typeof first) =>
        plan.programs[0]!.steps.filter(({ op }) => op === "allToAll").length;
      t.equal(
        exchanges(first) > 0,
        "ep" in mesh,
        "exchanges exist on meshes with ep",
      );
      t.equal(
        exchanges(second),
        exchanges(first),
        "exchanges are not recomputed",
      );
    });
  }
}

t.test("gradients match finite differences", async (t) => {
  const wave = (count: number, by: number) =>
    Array.from({ length: count }, (_, i) => Math.sin(by * (i + 1)));
  await gradientsHold(t, {
    model: layers("wide", { layers: 2, wide: 3, tokens: 3 }),
    inputs: { x: wave(12, 0.7) },
    params: Object.fromEntries(
      [0, 1].flatMap((layer) => [
        [`layers.${layer}.up`, wave(12, 1.3 + layer)],
        [`layers.${layer}.down`, wave(12, 2.1 + layer)],
      ]),
    ),
  });
});
