/** Verifier rules for partial sums: no update, output or gather uses a partial sum as the total. */

import t from "tap";
import {
  combine,
  dispatch,
  dot,
  map,
  mean,
  model,
  route,
  sum,
  upTo,
} from "../compiler/mod.ts";
import { compileGraph } from "../compiler/compile.ts";
import { trace } from "../compiler/graph/trace.ts";
import { trainStep } from "../compiler/graph/train_step.ts";
import { lowerScalars } from "../compiler/scalars.ts";
import { add, f32, max } from "../spec/kernel/build.ts";
import type { Expr } from "../spec/kernel/tree.ts";
import { stringifyPlan } from "../spec/document/json.ts";
import type { LaunchStep, Plan } from "../spec/plan/plan.ts";
import { verifyPlan, verifyPlanText } from "../spec/verify/mod.ts";
import { type Draft, stepAt, steps } from "./helpers/break_plan.ts";
import { type Mistake, testRefused } from "./helpers/refused.ts";

/** A training step of a router and its experts on four ranks. */
async function trainingPlan(): Promise<Plan> {
  const graph = trace(
    model({ token: upTo(16), embed: 4, expert: 4 }, (m) => {
      const x = m.input("x", "token embed");
      // Its gradient is twice a partial sum.
      const router = map((w) => w * 2, m.param("router", "expert embed"));
      const logits = dot(x, router, "embed");
      const routing = route(logits, { over: "expert", topK: 2 });
      const scaled = map(
        (v, s) => v * s,
        dispatch(x, routing),
        m.param("scale", "expert embed"),
      );
      const y = combine(scaled, routing);
      return { loss: mean(sum(map((v) => v * v, y), "embed"), "token") };
    }),
  );
  const step = trainStep(
    graph,
    { loss: "loss", optimizer: { kind: "sgd" } },
    await lowerScalars(graph),
  );
  return await compileGraph(step, {
    mesh: { dp: 2, ep: 2 },
    zero: 1,
  });
}

const plan = await trainingPlan();
/** The exchange of partial sums of the router's gradient, as blocks for the ranks of the items. */
const GATHER = steps(plan as Draft).findIndex((step) =>
  step.op === "allGather" && step.over.length === 2 &&
  step.blocks !== undefined
);
const gather = (draft: Draft) => stepAt(draft, "allGather", GATHER);
const part = (draft: Draft) => draft.buffers[gather(draft).from]!;
/** Returns a launch that reads and writes partial sums. */
const linear = (draft: Draft) => {
  const found = steps(draft).flatMap((step) => {
    if (step.op !== "launch") return [];
    const { tree } = draft.kernels[step.kernel]!;
    const all = tree.bindings.filter(({ name }) =>
      draft.buffers[step.bindings[name]!]!.unreduced
    );
    return all.some(({ access }) => access === "read") ? [{ tree, all }] : [];
  });
  if (!found[0]) throw new Error("no launch reads parts");
  return found[0];
};
/** Replaces each value that a launch of partial sums stores by `change` of it. */
function restore(draft: Draft, change: (value: Expr) => Expr): void {
  const { tree } = linear(draft);
  const body = JSON.stringify(
    tree.body,
    (_, node) =>
      node?.op === "store" ? { ...node, value: change(node.value) } : node,
  );
  tree.body = JSON.parse(body);
}
/** The total, computed by the launch after the exchange. */
const total = (draft: Draft) => {
  const { bindings } = stepAt(draft, "launch", GATHER + 1);
  return Object.values(bindings).find((name) => name !== gather(draft).to)!;
};

t.test("the compiled plan is legal, also after a round trip", (t) => {
  t.strictSame(part(plan as Draft).unreduced, ["dp", "ep"]);
  t.same(verifyPlan(plan), []);
  t.same(verifyPlanText(stringifyPlan(plan)).errors, []);
  t.end();
});

t.test("partial sums are reduced on the rank of each item", (t) => {
  t.ok(gather(plan as Draft).blocks, "blocks");
  t.equal(
    steps(plan as Draft).filter((step) =>
      step.op === "allGather" && plan.buffers[step.from]!.unreduced &&
      step.bytes > 4
    ).length,
    2,
    "one exchange per group",
  );
  t.end();
});

const BROKEN: readonly Mistake[] = [
  [
    "an update that reads a partial sum",
    "unreduced",
    /take it for all of it/,
    (p) => {
      const sum = total(p);
      for (const step of steps(p).slice(GATHER + 2)) {
        if (step.op !== "launch") continue;
        for (const [binding, name] of Object.entries(step.bindings)) {
          if (name === sum) step.bindings[binding] = gather(p).from;
        }
      }
    },
  ],
  [
    "a parameter that becomes a partial sum",
    "unreduced",
    /read buffer/,
    (p) => {
      const copy = steps(p).find((step) =>
        step.op === "copy" && step.to === "router"
      );
      if (copy?.op !== "copy") throw new Error("router is not updated");
      copy.from = gather(p).from;
    },
  ],
  ["an output that is a partial sum", "unreduced", /of kind 'output'/, (p) => {
    p.buffers["loss"]!.unreduced = ["dp"];
  }],
  ["partial sums of integers", "unreduced", /it is u32/, (p) => {
    const counts = Object.values(p.buffers).find(({ name }) =>
      name === "sendRow"
    )!;
    counts.unreduced = ["ep"];
  }],
  ["a partial sum over no axes", "unreduced", /keep a part/, (p) => {
    part(p).unreduced = [];
  }],
  [
    "a gather of some partial sums",
    "unreduced",
    /gathered over dp\+ep/,
    (p) => {
      part(p).unreduced = ["ep"];
    },
  ],
  [
    "gathered partial sums that are still unreduced",
    "unreduced",
    /gather '/,
    (p) => {
      p.buffers[gather(p).to]!.unreduced = ["dp", "ep"];
    },
  ],
  ["a partial sum over another axis", "unreduced", /for one over ep/, (p) => {
    const first = steps(p).findIndex((step) =>
      step.op === "launch" &&
      Object.values(step.bindings).includes(gather(p).from)
    );
    const { bindings } = stepAt(p, "launch", first);
    const other = Object.values(bindings).find((name) =>
      name !== gather(p).from && p.buffers[name]!.kind === "scratch"
    )!;
    p.buffers[other]!.unreduced = ["dp"];
    part(p).unreduced = ["ep"];
  }],
  ["a partial sum over more axes", "unreduced", /for one over dp\+ep/, (p) => {
    const { all } = linear(p);
    const { bindings } = steps(p).find((step) =>
      step.op === "launch" &&
      all.every(({ name }) => p.buffers[step.bindings[name] ?? ""]?.unreduced)
    ) as LaunchStep;
    const read = all.find(({ access }) => access === "read")!;
    p.buffers[bindings[read.name]!]!.unreduced = ["ep"];
  }],
  ["a clamped partial sum", "unreduced", /is not linear in/, (p) => {
    restore(p, (value) => max(value, f32(0)));
  }],
  ["a partial sum plus a constant", "unreduced", /is not linear in/, (p) => {
    restore(p, (value) => add(value, f32(1)));
  }],
  ["blocks that do not fill the group", "shapes", /it moves 4 from/, (p) => {
    gather(p).bytes = 4;
  }],
  [
    "partial sums sent completely to all ranks",
    "shapes",
    /the buffers have/,
    (p) => {
      delete gather(p).blocks;
    },
  ],
  ["blocks for another rank", "shapes", /number over dp\+ep/, (p) => {
    const { groupRank } = gather(p).blocks!;
    p.buffers[groupRank]!.data = { groupRank: ["ep"] };
  }],
  [
    "partial sums over an unknown mesh axis",
    "references",
    /'ghost'.*no axis/,
    (p) => {
      part(p).unreduced = ["ghost"];
    },
  ],
];
testRefused(plan, BROKEN, (name) => `${name} is rejected`);
