/** Each verifier rule rejects plans that violate it, and names the step. */

import fc from "fast-check";
import t from "tap";
import { stringifyPlan } from "../spec/document/json.ts";
import type { Plan } from "../spec/plan/plan.ts";
import type { Target } from "../engine/mod.ts";
import {
  assertLegal,
  RULE_NAMES,
  verifyPlan,
  verifyPlanText,
} from "../spec/verify/mod.ts";
import { BROKEN_DOCUMENTS } from "./helpers/broken_documents.ts";
import { BROKEN_FLIGHTS } from "./helpers/broken_flights.ts";
import { BROKEN_PROGRAMS } from "./helpers/broken_programs.ts";
import { goodPlan } from "./helpers/plans.ts";
import { RUNS } from "./helpers/seed.ts";

const BROKEN = [...BROKEN_DOCUMENTS, ...BROKEN_PROGRAMS, ...BROKEN_FLIGHTS];

t.test("verifyPlan() accepts compiled plans", async (t) => {
  const meshes = [{}, { ep: 1 }, { ep: 2 }, { ep: 3 }, { dp: 2, ep: 2 }];
  for (const model of ["layer", "decoder"] as const) {
    for (const mesh of meshes) {
      for (const chunks of [1, 3]) {
        const plan = await goodPlan(model, mesh, chunks);
        const title = `${model} ${JSON.stringify(mesh)} in ${chunks}`;
        t.same(verifyPlan(plan), [], title);
      }
    }
  }
});

t.test("verifyPlan() rejects", async (t) => {
  const rules = new Set(BROKEN.map(({ rule }) => rule));
  t.same(RULE_NAMES.filter((rule) => !rules.has(rule)), ["json"]);
  t.ok(BROKEN.length >= 40, `${BROKEN.length} kinds of broken plan`);
  for (const { name, rule, step, message, mutate, chunks } of BROKEN) {
    const plan = await goodPlan("layer", { ep: 2 }, chunks);
    mutate(plan);
    const errors = verifyPlan(plan);
    const listed = errors.map((e) => `${e.rule} ${e.step}: ${e.message}`);
    const found = errors.find((e) =>
      e.rule === rule && message.test(e.message)
    );
    t.ok(found, `${name}: ${rule}`, { found: listed });
    if (!found) continue;
    if (step !== null) {
      t.equal(found.step, `main[${step}]`, `${name}: names the step`);
    }
    if (found.step !== null) t.match(found.message, found.step);
    t.match(found.message, /^Cannot [a-z].*: .*[^.]$/s, `${name}: message`);
  }
});

t.test("only plans that pass assertLegal() can be opened", async (t) => {
  const plan: Plan = await goodPlan("layer", { ep: 2 });
  // @ts-expect-error: the plan is not asserted to be legal.
  const unknown: Target = { kind: "plan", plan };
  assertLegal(plan);
  const legal: Target = { kind: "plan", plan };
  t.same(unknown, legal);
});

t.test("verifyPlanText() reports where a text is truncated", async (t) => {
  const text = stringifyPlan(await goodPlan("layer", { ep: 2 }));
  for (const share of [0, 0.1, 0.5, 0.9]) {
    const { plan, errors } = verifyPlanText(
      text.slice(0, Math.floor(text.length * share)),
    );
    t.equal(plan, undefined);
    t.match(errors, [{
      step: null,
      rule: "json",
      message: /^Cannot read the plan: the JSON ends too early, at line \d+/,
    }]);
  }
  t.match(verifyPlanText("nonsense").errors[0]?.message, /it is not JSON/);
  t.match(verifyPlanText("null").errors[0], { rule: "schema" });
});

/** Values that a hostile document may contain anywhere. */
const HOSTILE = [
  null,
  0,
  -1,
  1e300,
  0.5,
  "",
  "constructor",
  "__proto__",
  "x",
  [],
  {},
  [[]],
  true,
  1023,
  65536,
];

/** Returns the holder and key of every value of a document. */
function findValues(value: unknown, values: [object, string][] = []) {
  if (typeof value !== "object" || value === null) return values;
  for (const [key, item] of Object.entries(value)) {
    values.push([value, key]);
    findValues(item, values);
  }
  return values;
}

t.test("verifyPlanText() never throws", async (t) => {
  const unchunked = stringifyPlan(await goodPlan("layer", { dp: 2, ep: 2 }));
  const chunked = stringifyPlan(await goodPlan("layer", { dp: 2, ep: 2 }, 2));
  const change = fc.record({
    at: fc.nat(),
    value: fc.constantFrom(undefined, ...HOSTILE),
    /** Half of the time, copies another value of the document, which fits more often. */
    from: fc.option(fc.nat()),
  });
  const changes = fc.array(change, { minLength: 1, maxLength: 3 });
  let reported = 0;
  fc.assert(
    fc.property(changes, fc.boolean(), (changes, steps) => {
      const document = JSON.parse(steps ? chunked : unchunked) as Plan;
      for (const { at, value, from } of changes) {
        // Kernels dominate a document, so half of the time only its programs change.
        const values = findValues(steps ? document.programs : document);
        const [holder, key] = values[at % values.length]!;
        const [other, name] = values[(from ?? 0) % values.length]!;
        const put = from === null
          ? value
          : structuredClone(Reflect.get(other, name));
        if (put === undefined) Reflect.deleteProperty(holder, key);
        else Reflect.set(holder, key, put);
      }
      reported += verifyPlanText(JSON.stringify(document)).errors.length > 0
        ? 1
        : 0;
    }),
    { numRuns: 50 * RUNS },
  );
  t.ok(reported > 15 * RUNS, `${reported} of ${50 * RUNS} were rejected`);
});

t.test("verifyPlan() handles deep and wide documents", async (t) => {
  const plan = await goodPlan("layer", { ep: 2 });
  const deep = "[".repeat(100_000) + "]".repeat(100_000);
  const text = stringifyPlan(plan).replace('"mesh": [', `"mesh": [${deep},`);
  t.match(verifyPlanText(text).errors[0]?.message, /nested deeper than/);
  plan.ranks = 1e9;
  plan.mesh[0]!.size = 1e9;
  t.match(verifyPlan(plan)[0], { rule: "schema" });
});
