/** Deduplicated dispatch: the same bits, exact and fewer bytes; and plans that declare it wrongly. */
// needs: cpu, gpu
// rotates with: compiler/passes/deduplicate.ts, compiler/passes/routed.ts, compiler/passes/lower/routing/group.ts, compiler/passes/lower/routing/exchange.ts, compiler/kernels/routing/list_rows.ts

import t from "tap";
import {
  combine,
  type CompileOptions,
  dispatch,
  dot,
  model,
  mul,
  route,
  upTo,
} from "../compiler/mod.ts";
import { formatPlan, type Plan, summarizePlan } from "../spec/mod.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { type Draft, stepAt, type StepOf } from "./helpers/break_plan.ts";
import { relativeError } from "./helpers/checkpoints.ts";
import { exchangedLayers } from "./helpers/exchanged_layers.ts";
import { type Mistake, testRefused } from "./helpers/refused.ts";
import { countedRun } from "./helpers/counted_run.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  EXPERT_MESHES,
  runCase,
  skip,
} from "./helpers/run_model.ts";
import { devicesInTurn } from "./helpers/needs.ts";
import { inTurn } from "./helpers/seed.ts";

t.teardown(closeDevices);

const sizes = { token: upTo(48), embed: 16, ffn: 12, expert: 8 };

const layers = exchangedLayers({ tokens: 48, embed: 16, slots: 7 });

for (const kind of devicesInTurn("deduplicate")) {
  const options = kind === "gpu" ? { skip } : {};
  t.test(`no bit changes on a shared ${kind}`, options, async (t) => {
    const wanted = digest(await runCase(layers, kind));
    for (
      const mesh of kind === "gpu"
        ? EXPERT_MESHES.slice(1, 2)
        : inTurn(EXPERT_MESHES, 2)
    ) {
      for (const check of [false, true]) {
        const found = await runCase(layers, kind, {
          ...mesh,
          check,
          deduplicate: true,
        });
        const checks = found.flatMap((outputs) =>
          Object.keys(outputs).filter((name) => name.startsWith("check."))
        );
        t.equal(checks.length > 0, check, "checked runs have check outputs");
        const plain = found.map((outputs) =>
          Object.fromEntries(
            Object.entries(outputs).filter(([name]) => {
              if (!name.startsWith("check.")) return true;
              t.ok(outputs[name]!.data.every((n) => n === 0), "all returned");
              return false;
            }),
          )
        );
        t.equal(digest(plain), wanted, JSON.stringify(mesh));
      }
    }
  });
}

t.test("bytes between devices match the prediction and are fewer", async (t) => {
  const values = await runCase(layers, "cpu");
  const wanted = digest(values);
  for (const mesh of EXPERT_MESHES) {
    const sent: number[] = [];
    const returned: number[] = [];
    for (
      const strategy of [
        { deduplicate: false },
        { deduplicate: true },
        { deduplicate: true, chunks: 2 },
        { deduplicate: true, numerics: "fast" },
        { dispatcher: "allGather", numerics: "fast" },
      ] as const
    ) {
      const { results: found, ranks } = await countedRun(t, layers, {
        ...mesh,
        ...strategy,
      });
      if ("numerics" in strategy) {
        for (const [call, outputs] of found.entries()) {
          for (const [name, { data }] of Object.entries(outputs)) {
            const exact = values[call]![name]!.data;
            const error = exact.length
              ? relativeError(data, exact)
              : data.length;
            t.ok(error < 1e-5, `${name} is ${error} off`);
          }
        }
      } else t.equal(digest(found), wanted);
      sent.push(
        ranks.reduce((n, { sentBytes }) => n + sentBytes.dispatch.actual, 0),
      );
      returned.push(
        ranks.reduce((n, { sentBytes }) => n + sentBytes.combine.actual, 0),
      );
    }
    t.ok(sent[1]! < sent[0]!, `${sent.join(" and then ")} bytes`);
    t.ok(
      returned[3]! < returned[1]!,
      `${returned.join(" and then ")} bytes back`,
    );
  }
});

const one: Case = {
  model: model(sizes, (m) => {
    const x = m.input("x", "token embed");
    const routing = route(
      dot(x, m.param("router", "expert embed"), "embed"),
      { over: "expert", topK: 3, preset: "mixtral" },
    );
    return { y: combine(mul(dispatch(x, routing), 2), routing) };
  }),
};
const plan: Plan = await compileCase(one, {
  mesh: { ep: 2 },
  deduplicate: true,
});
const index = (part: string) =>
  plan.programs[0]!.steps.findIndex((step) =>
    step.part?.op === "dispatch" && step.part.part === part
  );

t.test("dispatch is deduplicated by default if that saves much", async (t) => {
  const parts = async (embed: number, mesh: CompileOptions) => {
    const wide = model({ ...sizes, embed, expert: 16 }, (m) => {
      const x = m.input("x", "token embed");
      const router = m.param("router", "expert embed");
      const routing = route(dot(x, router, "embed"), {
        over: "expert",
        topK: 4,
        preset: "olmoe",
      });
      return { y: combine(mul(dispatch(x, routing), 2), routing) };
    });
    const { programs } = await compileCase({ model: wide }, mesh);
    return programs[0]!.steps.map(({ part }) => part?.part);
  };
  const { length } = (await parts(512, { mesh: { ep: 4 } }))
    .filter((part) => part === "exchange indices");
  t.equal(length, 1, "a quarter of long rows");
  for (
    const [embed, mesh] of [
      [16, { mesh: { ep: 4 } }],
      [512, { mesh: { ep: 8 } }],
      [512, { mesh: { ep: 1 } }],
      [512, { mesh: { ep: 4 }, deduplicate: false }],
    ] as const
  ) t.notOk((await parts(embed, mesh)).includes("exchange indices"));
});

t.test("the plan states the savings", (t) => {
  t.same(verifyPlan(plan), []);
  t.match(
    summarizePlan(plan),
    "dispatch per token: at most 140 bytes over 1 layer, 65 of them to other ranks if experts are chosen evenly, 31 fewer than once for each expert\n",
  );
  t.match(
    formatPlan(plan),
    /dispatch +over ep +tokens\(rank -> others\) x 64 B/,
  );
  t.end();
});

const BROKEN: readonly Mistake[] = [
  ["by other counts", "transposed", /split at \[4, 6, 6\]/, (p) => {
    stepAt(p, "allToAll", index("exchange")).splits = [4, 6, 6];
  }],
  ["by the counts of experts", "transposed", /split at \[2, 3, 4\]/, (p) => {
    stepAt(p, "allToAll", index("exchange")).splits = [2, 3, 4];
  }],
  ["by longer counts", "shapes", /must hold 14 u32/, (p) => {
    stepAt(p, "allToAll", index("exchange")).countsPerRank = 7;
  }],
  ["with too little capacity", "capacity", /up to 48 rows can be/, (p) => {
    const { to } = stepAt(p, "allToAll", index("exchange"));
    p.buffers[to]!.axes[0]!.size = 40;
    p.buffers[to]!.bytes = 40 * 64;
  }],
  ["without their slots", "parts", /tokens once and says 0 times/, (p) => {
    Reflect.deleteProperty(
      stepAt(p, "allToAll", index("exchange indices")),
      "part",
    );
  }],
];
/** Returns the launch that computes a part of a routing. */
function partIn(plan: Draft, part: string): StepOf<"launch"> {
  const steps = plan.programs[0]!.steps;
  return stepAt(plan, "launch", steps.findIndex((s) => s.part?.part === part));
}

testRefused(
  await compileCase(one, {
    mesh: { ep: 2 },
    deduplicate: true,
    numerics: "fast",
  }),
  [["under exact numerics", "parts", /numerics are 'exact'/, (p) => {
    Object.assign(p.numerics, { class: "exact" });
  }], ["without sums", "parts", /is returned by tokens/, (p) => {
    Reflect.deleteProperty(partIn(p, "sum"), "part");
  }]],
  (name) => `summed return rows ${name} are rejected`,
);

testRefused(
  await compileCase(one, {
    mesh: { dp: 2, ep: 2 },
    dispatcher: "allGather",
    numerics: "fast",
  }),
  [[
    "of tokens not assigned to groups",
    "placement",
    /not assigned over its/,
    (p) => {
      p.axes["token/dp"]!.assignment = { by: "group", of: "token" };
    },
  ], ["that are not exchanged", "parts", /no 'exchange'/, (p) => {
    for (const to of Object.values(partIn(p, "combine").bindings)) {
      Reflect.deleteProperty(p.buffers[to]!, "unreduced");
    }
  }]],
  (name) => `terms of a combine ${name} are rejected`,
);

t.test("an all-gather dispatch needs fast numerics", async (t) => {
  await t.rejects(
    compileCase(one, { mesh: { ep: 2 }, dispatcher: "allGather" }),
    {
      name: "ModelError",
      message:
        "Cannot use dispatcher 'allGather': it adds the results of a token in another order than one rank does, and numerics are 'exact'. Compile with 'fast' numerics, or use 'allToAll'",
    },
  );
});

testRefused(
  plan,
  BROKEN,
  (name) => `deduplicated tokens ${name} are rejected`,
);
