/** Rows of a sharded axis selected by an input: their placement, their text, and plans that declare them wrongly. */

import t from "tap";
import {
  add,
  attention,
  compile,
  embedding,
  model,
  upTo,
} from "../compiler/mod.ts";
import { formatPlan } from "../spec/text/plan.ts";
import { stringifyPlan } from "../spec/document/json.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { verifyPlan, verifyPlanText } from "../spec/verify/mod.ts";
import type { Draft } from "./helpers/break_plan.ts";
import { type Mistake, testRefused } from "./helpers/refused.ts";

const sizes = {
  token: upTo(8),
  row: upTo(3),
  head: 2,
  dim: 4,
  sequence: 3,
  context: 8,
};

/** Selects the last tokens of sequences. Tokens of a sequence are on one rank. */
const picked = model(sizes, (m) => {
  const q = m.input("q", "token head dim");
  const { y, keys, values } = attention(q, {
    key: q,
    value: q,
    keys: m.state("keys", "sequence context head dim"),
    values: m.state("values", "sequence context head dim"),
    sequence: m.input("sequence", "token", { dtype: "i32" }),
    position: m.input("position", "token", { dtype: "i32" }),
  });
  const rows = m.input("rows", "row", { dtype: "i32" });
  return { last: embedding(y, rows, "token"), keys, values };
});
const plan: Plan = await compile(picked, {
  mesh: { dp: 2 },
  place: { token: "dp" },
});

t.test("the compiled plan is legal, also after a round trip, and states the ranks of rows", (t) => {
  t.same(verifyPlan(plan), []);
  t.same(verifyPlanText(stringifyPlan(plan)).errors, []);
  t.match(
    formatPlan(plan),
    /row\/dp +<= 3 +over dp assigned by items rows of token\/dp\n/,
  );
  t.equal(plan.programs[0]!.inputs["rows"]!.indexes, "token/dp");
  t.end();
});

t.test("computed rows are selected from all tokens", async (t) => {
  const computed = model(sizes, (m) => ({
    y: embedding(
      m.input("x", "token dim"),
      add(
        m.input("rows", "row", { dtype: "i32" }),
        m.input("shift", "row", { dtype: "i32" }),
      ),
      "token",
    ),
  }));
  const plan = await compile(computed, {
    mesh: { dp: 2 },
    place: { token: "dp" },
  });
  t.same(verifyPlan(plan), []);
  t.match(formatPlan(plan), /token\/dp dim\] -> f32\[token dim\]/);
});

const input = (draft: Draft) => draft.programs[0]!.inputs["rows"]!;

const BROKEN: readonly Mistake[] = [
  [
    "of an axis that is not assigned",
    "placement",
    /'head' is not assigned/,
    (p) => {
      p.axes["row/dp"]!.assignment = { by: "items", input: "rows", of: "head" };
    },
  ],
  ["of themselves", "placement", /'row' is not assigned over/, (p) => {
    p.axes["row/dp"]!.assignment = { by: "items", input: "rows", of: "row" };
  }],
  ["of axes assigned by them", "placement", /assigned as itself/, (p) => {
    p.axes["row/dp"]!.assignment = { by: "items", input: "rows", of: "row/dp" };
  }],
  ["of no axis", "references", /'ghost'.*: the plan has no such axis/, (p) => {
    p.axes["row/dp"]!.assignment = { by: "items", input: "rows", of: "ghost" };
  }],
  ["that are bounded without a table", "placement", /no table/, (p) => {
    p.axes["row/dp"]!.assignment = {
      by: "items",
      input: "rows",
      of: "token/dp",
      each: 1,
    };
  }],
  ["by an input of other items", "placement", /no input 'sequence'/, (p) => {
    p.axes["row/dp"]!.assignment = {
      by: "items",
      input: "sequence",
      of: "token",
    };
  }],
  ["without bounds of indices", "placement", /no input 'rows'/, (p) => {
    Reflect.deleteProperty(input(p), "indexes");
  }],
  [
    "that index a replicated axis",
    "ports",
    /'head', which ranks have no/,
    (p) => {
      input(p).indexes = "head";
    },
  ],
  ["that index no axis", "references", /'ghost'/, (p) => {
    input(p).indexes = "ghost";
  }],
];
testRefused(plan, BROKEN, (name) => `rows ${name} are rejected`);
