/**
 * Experts over nodes: tokens are sent once per node and forwarded within it, with the same bits and the expected bytes.
 */
// needs: cpu

import t from "tap";
import {
  combine,
  type CompileOptions,
  dispatch,
  dot,
  model,
  route,
  upTo,
} from "../compiler/mod.ts";
import { formatPlan, summarizePlan } from "../spec/mod.ts";
import { type Draft, stepAt } from "./helpers/break_plan.ts";
import { countedRun } from "./helpers/counted_run.ts";
import { exchangedLayers } from "./helpers/exchanged_layers.ts";
import { type Mistake, testRefused } from "./helpers/refused.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  runCase,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

const [TOKENS, EXPERTS, CHOICES, ROW] = [24, 8, 3, 8];
const SIZES = { token: upTo(TOKENS), embed: ROW, ffn: 12, expert: EXPERTS };

const layers = exchangedLayers({ tokens: TOKENS, embed: ROW, slots: 5 });

t.test("two levels change no bit", async (t) => {
  const wanted = digest(await runCase(layers, "cpu"));
  for (
    const options of [
      { mesh: { node: 2, ep: 2 } },
      { mesh: { node: 2, ep: 4 } },
      { mesh: { dp: 2, node: 2, ep: 2 } },
      { mesh: { node: 2, tp: 2 } },
      { mesh: { node: 2, ep: 2 }, receiveRows: "5" },
      // Experts that are not divided equally over nodes use one level.
      { mesh: { node: 2, ep: 3 } },
    ]
  ) {
    t.equal(digest(await runCase(layers, "cpu", options)), wanted);
  }
  const checked = await runCase(layers, "cpu", {
    mesh: { node: 2, ep: 2 },
    check: true,
  });
  const checks = checked.flatMap((outputs) =>
    Object.entries(outputs).filter(([name]) => name.startsWith("check."))
  );
  t.ok(checks.length > 0);
  t.ok(checks.every(([, { data }]) => data.every((n) => n === 0)));
});

/** Choices of a token: any experts, those of one node, or fixed experts. */
const CHOICE: readonly ((token: number, j: number) => number)[] = [
  (token, j) => (3 * token + 5 * j) % EXPERTS,
  (token, j) => 4 * (token % 2) + j,
  (_, j) => j,
];

const fixedChoices: Case = {
  model: model({ ...SIZES, choice: CHOICES }, (m) => {
    const x = m.input("x", "token embed");
    const routing = route(
      dot(x, m.param("router", "expert embed"), "embed"),
      {
        over: "expert",
        topK: CHOICES,
        preset: "mixtral",
        choices: m.input("choices", "token choice", { dtype: "i32" }),
      },
    );
    const w = m.param("experts.{expert}.w", "expert ffn embed");
    return { y: combine(dot(dispatch(x, routing), w, "embed"), routing) };
  }),
  calls: CHOICE.map((choice, n) => ({
    x: waves(ROW * TOKENS, n),
    choices: Array.from(
      { length: TOKENS * CHOICES },
      (_, i) => choice(Math.floor(i / CHOICES), i % CHOICES),
    ),
  })),
};

/** Bytes of a dispatch and its combine within nodes and between them, by the choices of all calls. */
function bytesOf(nodes: number, ranks: number) {
  const [row, result] = [4 * ROW, 4 * 12];
  const bytes = { dispatch: 0, combine: 0 };
  for (const choice of CHOICE) {
    for (let token = 0; token < TOKENS; token++) {
      const at = Math.floor(token / (TOKENS / (nodes * ranks)));
      const [node, rank] = [Math.floor(at / ranks), at % ranks];
      const others = new Set<number>();
      for (let j = 0; j < CHOICES; j++) {
        const owner = Math.floor(
          choice(token, j) / (EXPERTS / (nodes * ranks)),
        );
        const to = Math.floor(owner / ranks);
        if (to !== node) {
          others.add(to);
          // Index of the token.
          bytes.dispatch += 4;
          bytes.combine += result;
        }
        if (owner % ranks !== rank) {
          bytes.dispatch += row;
          bytes.combine += result;
        }
      }
      bytes.dispatch += row * others.size;
    }
  }
  return bytes;
}

t.test("bytes equal the formula", async (t) => {
  for (const [node, ep] of [[2, 2], [2, 4]] as const) {
    const { ranks, results } = await countedRun(t, fixedChoices, {
      mesh: { node, ep },
    });
    const sent = (kind: "dispatch" | "combine") =>
      ranks.reduce((n, { sentBytes }) => n + sentBytes[kind].actual, 0);
    t.same(
      { dispatch: sent("dispatch"), combine: sent("combine") },
      bytesOf(node, ep),
    );
    const one = await countedRun(t, fixedChoices, { mesh: { ep: node * ep } });
    t.equal(digest(results), digest(one.results));
  }
});

t.test("a wire format rounds as with one level", async (t) => {
  const wire = "bf16" as const;
  const [two, one] = await Promise.all(
    [{ node: 2, ep: 2 }, { ep: 4 }].map((mesh) =>
      runCase(fixedChoices, "cpu", { mesh, wire })
    ),
  );
  t.equal(digest(two!), digest(one!));
});

t.test("two levels are not split into chunks", async (t) => {
  await t.rejects(
    compileCase(fixedChoices, { mesh: { node: 2, ep: 2 }, chunks: 2 }),
    /^Cannot split a dispatch into chunks: it is over nodes\./,
  );
});

const options: CompileOptions = { mesh: { node: 2, ep: 2 } };
const plan = await compileCase(fixedChoices, options);
const { steps } = plan.programs[0]!;
const parts = (part: string, within: boolean) =>
  [...steps.keys()].filter((i) => {
    const of = steps[i]!.part;
    return of?.part === part && (of.within !== undefined) === within;
  });

t.test("the plan states the bytes of both levels", (t) => {
  t.match(
    summarizePlan(plan),
    /dispatch per token: at most \d+ bytes over 1 layer, \d+ of them to other ranks if experts are chosen evenly \(\d+ over node, \d+ over ep\)/,
  );
  t.match(
    formatPlan(plan),
    /dispatch +over node +tokens\(rank -> others\) x 32 B/,
  );
  t.match(formatPlan(plan), /dispatch +over ep +rows\(rank -> others\) x 32 B/);
  t.end();
});

const [count] = parts("count", true) as [number];
const [permute] = parts("permute", true) as [number];
const [moved] = parts("combine", true) as [number];
const [outer, back] = parts("exchange", false) as [number, number];
const [inner] = parts("exchange", true) as [number];
/** Reduces the rows of a buffer. */
const shorten = (draft: Draft, name: string, rows: number) => {
  const buffer = draft.programs[0] && draft.buffers[name]!;
  buffer!.axes[0]!.size = rows;
  buffer!.bytes = rows * 4 * ROW;
};

const BROKEN: readonly Mistake[] = [
  ["that belong to no nodes", "transposed", /no axis is placed so/, (p) => {
    for (const { part } of p.programs[0]!.steps) {
      if (part) Reflect.deleteProperty(part, "within");
    }
  }],
  ["by counts of one source", "transposed", /counts other rows/, (p) => {
    const { bindings } = stepAt(p, "launch", count);
    bindings["all"] = bindings["counts"]!;
  }],
  ["of rows that no node sent", "transposed", /no node sent/, (p) => {
    stepAt(p, "launch", permute).bindings["x"] = "sent";
  }],
  ["in another order back", "permutation", /do not read one/, (p) => {
    const { bindings } = stepAt(p, "launch", moved);
    bindings["rowCount"] = bindings["index"]!;
  }],
  ["that do not return", "transposed", /do not return/, (p) => {
    stepAt(p, "allToAll", back).from = stepAt(p, "allToAll", outer).to;
  }],
  ["of other experts of a node", "transposed", /no axis is placed/, (p) => {
    for (const step of p.programs[0]!.steps) {
      if (step.op === "allToAll" && step.part?.within !== undefined) {
        step.splits = [0, 1, 4];
      }
    }
  }],
  ["with too little capacity", "capacity", /up to 36 rows can be/, (p) => {
    shorten(p, stepAt(p, "allToAll", inner).from, 30);
  }],
  ["of too many sources", "capacity", /up to 48 rows can be/, (p) => {
    shorten(p, stepAt(p, "allToAll", inner).to, 40);
  }],
  ["by tokens of too few nodes", "capacity", /up to 12 rows can be/, (p) => {
    shorten(p, stepAt(p, "allToAll", outer).to, 11);
  }],
];

testRefused(plan, BROKEN, (name) => `rows forwarded ${name} are rejected`);
