/** Verifier rules for gathers of rows and for tables of axis assignment. */

import t from "tap";
import { attention, compile, model, sum, upTo } from "../compiler/mod.ts";
import { stringifyPlan } from "../spec/document/json.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { verifyPlan, verifyPlanText } from "../spec/verify/mod.ts";
import { type Draft, stepAt, steps } from "./helpers/break_plan.ts";
import { type Mistake, testRefused } from "./helpers/refused.ts";

/** A sum over tokens assigned by sequence: gathered and sorted. */
const plan: Plan = await compile(
  model({ token: upTo(8), head: 2, dim: 4, sequence: 3, context: 8 }, (m) => {
    const q = m.input("q", "token head dim");
    const { y, keys, values } = attention(q, {
      key: q,
      value: q,
      keys: m.state("keys", "sequence context head dim"),
      values: m.state("values", "sequence context head dim"),
      sequence: m.input("sequence", "token", { dtype: "i32" }),
      position: m.input("position", "token", { dtype: "i32" }),
    });
    return { y, keys, values, total: sum(y, "token") };
  }),
  { mesh: { dp: 2 }, place: { token: "dp" } },
);
const GATHER = plan.programs[0]!.steps.findIndex(({ op }) =>
  op === "allGather"
);
const gather = (draft: Draft) => stepAt(draft, "allGather", GATHER);
const buffer = (draft: Draft, name: string) => draft.buffers[name]!;

t.test("the compiled plan is legal, also after a round trip", (t) => {
  t.same(verifyPlan(plan), []);
  t.same(verifyPlanText(stringifyPlan(plan)).errors, []);
  t.end();
});

const BROKEN: readonly Mistake[] = [
  ["of another axis", "shapes", /'dim' is no dynamic axis/, (p) => {
    gather(p).rows!.axis = "dim";
  }],
  ["of no axis", "references", /'ghost'.*: the plan has no such axis/, (p) => {
    gather(p).rows!.axis = "ghost";
  }],
  ["by no buffer", "references", /buffer 'ghost'/, (p) => {
    gather(p).rows!.counts = "ghost";
  }],
  [
    "by a table of other contents",
    "shapes",
    /does not hold the counts/,
    (p) => {
      gather(p).rows!.counts = "rows of token/dp";
    },
  ],
  ["of longer rows", "shapes", /rows of 64 bytes/, (p) => {
    gather(p).bytes = 64;
  }],
  [
    "with too little capacity",
    "shapes",
    /'gathered' does not.* 8 of them/,
    (p) => {
      buffer(p, "gathered").axes[0]!.size = 4;
    },
  ],
  ["without its rows", "shapes", /moves 32 from each/, (p) => {
    Reflect.deleteProperty(gather(p), "rows");
  }],
  ["on one rank", "groups", /wait for ever/, (p) => {
    steps(p)[GATHER]!.ranks = { dp: [0] };
  }],
  [
    "with a table without a description",
    "contents",
    /'assignment' belongs/,
    (p) => {
      Reflect.deleteProperty(buffer(p, "rows of token/dp"), "assignment");
    },
  ],
  ["with a table of too few ranks", "contents", /the counts of/, (p) => {
    buffer(p, "counts of token/dp over dp").axes[0]!.size = 1;
  }],
  ["with a table of too few rows", "contents", /the rows of/, (p) => {
    buffer(p, "rows of token/dp").axes[0]!.size = 4;
  }],
  [
    "with a table of an axis that is replicated",
    "contents",
    /the rows/,
    (p) => {
      buffer(p, "rows of token/dp").assignment!.axis = "context";
    },
  ],
  ["of a part of another axis", "placement", /no part of 'sequence'/, (p) => {
    p.axes["token/dp"]!.of = "sequence";
  }],
];
testRefused(plan, BROKEN, (name) => `a gather ${name} is rejected`);
