// Untrusted plans: endless work is rejected, or ended by a deadline with a message.
// needs: cpu, gpu
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { add as add_, compile, model } from "../compiler/mod.ts";
import { assertCompiled } from "../engine/compiled_from.ts";
import { openTarget, runOpened } from "../engine/mod.ts";
import {
  add,
  bitcast,
  convert,
  f32,
  for_,
  id,
  load,
  local,
  set,
  store,
  sub,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import type { Stmt } from "../spec/kernel/tree.ts";
import { assertLegal, parsePlan, stringifyPlan } from "../spec/mod.ts";
import type { LaunchStep, Plan } from "../spec/plan/plan.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { files } from "./helpers/checkpoints.ts";
import {
  floats,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { skipWithoutGpu } from "./helpers/needs.ts";
import type { Mutable } from "./helpers/plans.ts";
import { inTurn } from "./helpers/seed.ts";

const PROGRAM = fileURLToPath(
  new URL("../bin/switchyard.mjs", import.meta.url),
);

const folder = temporaryFolder(t);
const at = (name: string) => path.join(folder, name);
writeFileSync(
  at("model.ts"),
  `import { add, model } from "switchyard-moe";
export const m = model({ a: 64, b: 64 }, (m) => ({ y: add(m.input("x", "a b"), 1) }));
`,
);
await writeRaw(at("in"), { x: floats([64, 64], 1) });
const planned = await switchyard([
  "plan",
  at("model.ts"),
  "--out",
  at("plan.json"),
]);
t.equal(planned.code, 0, planned.err);
const text = readFileSync(at("plan.json"), "utf8");

/** Writes a changed plan to a file. */
function plan(
  change: (parts: {
    readonly plan: Mutable<ReturnType<typeof parsePlan>>;
    readonly launch: Mutable<LaunchStep>;
    readonly body: Mutable<Stmt>[];
  }) => void,
): string {
  const plan = parsePlan(text) as Mutable<ReturnType<typeof parsePlan>>;
  const launch = plan.programs[0]!.steps[0]! as Mutable<LaunchStep>;
  const kernel = plan.kernels[launch.kernel]!;
  change({ plan, launch, body: kernel.tree.body });
  writeFileSync(at("hostile.json"), stringifyPlan(plan));
  return at("hostile.json");
}

const kernel = (parsePlan(text).programs[0]!.steps[0] as LaunchStep).kernel;
const [binding] = parsePlan(text).kernels[kernel]!.tree.bindings;

/** Writes a plan with statements before all others. */
function withFirst(...statements: Stmt[]): string {
  return plan(({ body }) =>
    body.unshift(...structuredClone(statements) as Mutable<Stmt>[])
  );
}

async function run(file: string, ...more: string[]) {
  writeFileSync(at("out"), "old contents");
  const done = await switchyard([
    ...["run", file, "--inputs", at("in"), "--outputs", at("out")],
    ...["--adapter", "cpu", ...more],
  ]);
  return { ...done, left: readFileSync(at("out"), "utf8") };
}

/** Permits plans that differ from what their model compiles to. */
const ALLOWED = ["--allow-kernels"];

const REMEDY =
  "Compile the model again, or run its kernels without guaranteed results (--allow-kernels)\n";

/** Writes a plan with this many workgroups in its launch. */
const groups = (n: number) =>
  plan(({ launch }) => {
    launch.workgroups = [n, 1, 1];
  });

t.test("a changed plan runs only with permission", async (t) => {
  t.equal((await run(at("plan.json"))).code, 0);
  const changed = groups(1);
  t.equal((await run(changed)).code, 1);
  const raced = await run(changed, ...ALLOWED);
  t.equal(raced.code, 0, raced.err);
});

t.test("a plan of compile() runs in its process; a copy does not", async (t) => {
  const own = await compile(
    model({ a: 4, b: 2 }, (m) => ({ y: add_(m.input("x", "a b"), 1) })),
  );
  assertLegal(own);
  const options = { sharing: "shared", adapter: "cpu" } as const;
  const opened = await openTarget({ kind: "plan", plan: own }, files, options);
  const x = Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8);
  const { y } = await runOpened(opened, {
    x: { dtype: "f32", shape: [4, 2], data: x },
  });
  await opened.close();
  t.same(y!.data, x.map((value) => value + 1));
  const copy = { ...own };
  await t.rejects(openTarget({ kind: "plan", plan: copy }, files, options), {
    message: /^Cannot run the plan: it does not say which model/,
  });
});

const OTHERS: { [title: string]: readonly [() => string, string] } = {
  "all workgroups store to the same elements": [
    () =>
      plan(({ plan }) => {
        const { tree } = plan.kernels[kernel]!;
        tree.body = JSON.parse(
          JSON.stringify(tree.body).replaceAll(
            '{"op":"id","type":"u32","name":"group.x"}',
            '{"op":"const","type":"u32","value":0}',
          ),
        );
      }),
    `kernel '${kernel}' is not what the model in it compiles to`,
  ],
  "a launch of too few workgroups": [
    () => groups(1),
    "step main[0] is not what the model in it compiles to",
  ],
  "a launch of no workgroups": [
    () => groups(0),
    "step main[0] is not what the model in it compiles to",
  ],
  "other limits": [
    () =>
      plan(({ plan }) => {
        plan.requiredLimits = {
          ...plan.requiredLimits,
          maxComputeWorkgroupsPerDimension: 65535,
        };
      }),
    "'requiredLimits' is not what the model in it compiles to",
  ],
  "no model": [
    () =>
      plan(({ plan }) => {
        delete plan.compiledFrom;
      }),
    "it does not say which model it was compiled from",
  ],
  "an invalid model": [
    () =>
      plan(({ plan }) => {
        plan.compiledFrom = { axes: {} };
      }),
    "the model in it does not compile, Cannot read the model of the plan: '/' has no field 'nodes'. Compile it again",
  ],
  "a model that is too large": [
    () =>
      plan(({ plan }) => {
        plan.compiledFrom = {
          ...plan.compiledFrom,
          axes: { a: { size: 2 ** 40, dynamic: false } },
        };
      }),
    "the model in it does not compile, Cannot read the model of the plan: '/axes/a/size' must be at most 16777216. Compile it again",
  ],
  "a model whose nodes have too few operands": [
    () =>
      plan(({ plan }) => {
        const nodes = plan.compiledFrom!["nodes"] as object[];
        plan.compiledFrom = {
          ...plan.compiledFrom,
          nodes: nodes.with(-1, { ...nodes.at(-1)!, inputs: [] }),
        };
      }),
    "the model in it does not compile, its nodes do not fit together",
  ],
  "another model": [
    () =>
      plan(({ plan }) => {
        plan.compiledFrom = JSON.parse(
          JSON.stringify(plan.compiledFrom).replaceAll(
            '"value":1',
            '"value":2',
          ),
        );
      }),
    `kernel '${kernel}' is not what the model in it compiles to`,
  ],
};
// Every object has a property of the first name.
for (const axis of ["__proto__", "c"]) {
  OTHERS[`an unknown axis '${axis}'`] = [
    () =>
      plan(({ plan }) => {
        plan.compiledFrom = JSON.parse(
          JSON.stringify(plan.compiledFrom).replace(
            '"axes":["a","b"]',
            `"axes":["${axis}","b"]`,
          ),
        );
      }),
    `the model in it does not compile, Cannot read the model of the plan: node 0 has the axis '${axis}', and the model has none of that name. Compile it again`,
  ];
}
for (const [title, [file, state]] of Object.entries(OTHERS)) {
  t.test(`a changed plan is rejected: ${title}`, async (t) => {
    const path = file();
    t.equal((await switchyard(["verify", path])).err, "");
    t.strictSame(await run(path), {
      code: 1,
      out: "",
      left: "old contents",
      err: `Cannot run the plan: ${state}. ${REMEDY}`,
    });
  });
}

t.test("compiling the model of a plan has time and memory limits", async (t) => {
  const { compiledFrom, ...rest } = parsePlan(text);
  const [input] = compiledFrom!["nodes"] as object[];
  const many = 2 ** 16 - 2;
  const softmax = { primitive: "softmax", inputs: [1], params: { over: "b" } };
  const hostile = {
    ...rest,
    compiledFrom: {
      ...compiledFrom,
      nodes: [input, { repeat: "n", from: 0, to: many - 1, body: [softmax] }],
      returns: [{ name: "y", node: many }],
    },
  };
  const refused = (limit: string) => ({
    name: "PlanError",
    message:
      `Cannot run the plan: the model in it does not compile, it takes more than ${limit}. ${REMEDY.trim()}`,
  });
  await t.rejects(assertCompiled(hostile, { seconds: 0.5 }), refused("0.5 s"));
  await t.rejects(
    assertCompiled(hostile, { memory: 32 }),
    refused("32 MiB of memory"),
  );
});

t.test("12,000 axes, each assigned within the next, are rejected", (t) => {
  const draft = parsePlan(text) as Mutable<ReturnType<typeof parsePlan>>;
  draft.mesh = [{ name: "ep", size: 1 }];
  const count = 12_000;
  for (let i = 0; i < count; i++) {
    draft.axes[`c${i}`] = {
      size: 64,
      dynamic: true,
      over: ["ep"],
      assignment: {
        by: "blocks",
        ...i + 1 < count ? { within: `c${i + 1}` } : {},
      },
    };
  }
  const messages = verifyPlan(draft as Plan).map(({ message }) => message);
  t.ok(
    messages.includes(
      "Cannot place axis 'c0': 'c1' is not over fewer mesh axes",
    ),
    String(messages[0]),
  );
  t.end();
});

const LONG: { readonly [title: string]: () => string } = {
  "a constant end": () =>
    withFirst(for_("q", u32(0), u32(2 ** 32 - 1), [], u32(2))),
  "an end in the data": () => {
    const word = binding!.type === "f32"
      ? bitcast("u32", load(binding!.name, u32(0)))
      : load(binding!.name, u32(0), binding!.type);
    const longLoop = (name: string, body: Stmt[]) =>
      for_(name, u32(0), {
        op: "binary",
        type: "u32",
        fn: "or",
        a: word,
        b: u32(2 ** 31),
      }, body);
    return withFirst(
      var_("long", u32(0)),
      longLoop("q", [
        longLoop("r", [
          set("long", convert("u32", { op: "local", type: "u32", name: "r" })),
        ]),
      ]),
    );
  },
};

for (const [title, file] of inTurn(Object.entries(LONG), 2)) {
  t.test(`an endless loop with ${title} has a deadline`, async (t) => {
    const path = file();
    t.equal((await switchyard(["verify", path])).err, "");
    t.strictSame(await run(path, "--deadline", "1", ...ALLOWED), {
      code: 3,
      out: "",
      left: "old contents",
      err:
        `Cannot finish kernel '${kernel}' in main[0]: it has not ended within 1 s. Allow more with --deadline if it needs that\n`,
    });
  });
}

t.test("an endless loop has a deadline on a GPU", {
  skip: skipWithoutGpu,
}, (t) => {
  const fullRange = (name: string): Stmt =>
    for_(name, u32(0), bitcast("u32", load("x", u32(0))), [
      ...name === "q" ? [fullRange("r")] : [
        set("long", add(local("long", "u32"), local("r", "u32"))),
      ],
    ]);
  const file = plan(({ body, plan }) => {
    const { bindings } = plan.kernels[kernel]!.tree;
    const [from, to] = ["read", "write"].map((access) =>
      bindings.find((b) => b.access.endsWith(access))!
    );
    const index = add(u32(4095), local("long", "u32"));
    const statements = [
      var_("long", u32(0)),
      fullRange("q"),
      store(to!.name, index, f32(0)),
    ];
    const text = JSON.stringify(statements)
      .replaceAll('"binding":"x"', `"binding":"${from!.name}"`);
    body.unshift(...JSON.parse(text) as Mutable<Stmt>[]);
  });
  writeFileSync(at("out"), "old contents");
  const { status, stderr } = spawnSync(process.execPath, [
    ...[PROGRAM, "run", file, "--inputs", at("in"), "--outputs", at("out")],
    ...["--adapter", "0", "--deadline", "1", ...ALLOWED],
  ], { encoding: "utf8" });
  t.equal(status, 3);
  t.equal(
    stderr.replace(/^Warning: .*\n/gm, ""),
    `Cannot finish kernel '${kernel}' in main[0]: it has not ended within 1 s. Allow more with --deadline if it needs that\n`,
  );
  t.equal(readFileSync(at("out"), "utf8"), "old contents");
  t.end();
});

t.test("endless loops and grids are rejected", async (t) => {
  const inner = for_("r", u32(0), u32(2 ** 32 - 2), []);
  const group = id("group.x");
  const cases: readonly (readonly [string, string])[] = [
    [
      withFirst(for_("q", u32(0), u32(2 ** 32 - 2), [inner])),
      `Cannot launch kernel '${kernel}' in main[0] (model.ts:2:55): it takes 1.84e+19 operations an invocation, and 4.29e+9 are allowed`,
    ],
  ];
  for (const [file, message] of cases) {
    const { code, err } = await switchyard(["verify", file]);
    t.equal(code, 1);
    t.equal(err.split("\n")[0], message);
    const ran = await run(file);
    t.equal(ran.code, 1);
    t.equal(ran.err, `${message} (and 1 more)\n`);
    t.equal(ran.left, "old contents");
  }
  const grid = await switchyard([
    "verify",
    plan(({ plan, launch }) => {
      plan.requiredLimits = { maxComputeWorkgroupsPerDimension: 65535 };
      launch.workgroups = [65535, 65535, 1];
    }),
  ]);
  t.strictSame(grid, {
    code: 1,
    out: "",
    err:
      `Cannot launch kernel '${kernel}' in main[0] (model.ts:2:55): it takes 4.29e+9 workgroups, and 1.07e+9 are allowed\n`,
  });
  const endless = await switchyard([
    "verify",
    withFirst(for_("q", u32(0), u32(10), [], sub(group, group))),
  ]);
  t.strictSame(endless, {
    code: 1,
    out: "",
    err: `Cannot use kernel '${kernel}': the step of loop 'q' is no constant\n`,
  });
});

t.test("the CPU device has the limits of a plan, or names the missing one", async (t) => {
  const file = plan(({ plan }) => {
    plan.requiredLimits = {
      ...plan.requiredLimits,
      maxComputeWorkgroupsPerDimension: 1e6,
    };
  });
  t.strictSame(await run(file, ...ALLOWED), {
    code: 3,
    out: "",
    left: "old contents",
    err:
      "Cannot run the plan on 'CPU (WebAssembly SIMD, 2 threads)': it needs maxComputeWorkgroupsPerDimension = 1000000, and the device has 65535. Compile the model for this device\n",
  });
});

t.test("threads start only if address space suffices", {
  skip: process.platform !== "linux" && "other systems have no such limit",
}, (t) => {
  // The device reserves about 10 GiB of address space under Node.js 20, less under 24; threads need more.
  const seen = new Set([5.5e6, 11.5e6, 12e6, 1e8].map((limit) => {
    const { status, stderr } = spawnSync("sh", [
      ...["-c", `ulimit -v ${limit}; exec "$@"`, "sh", process.execPath],
      ...[PROGRAM, "run", at("plan.json"), "--inputs", at("in")],
      ...["--outputs", at("out"), "--adapter", "cpu"],
    ], { encoding: "utf8" });
    if (status !== 0) {
      t.match(
        stderr,
        /^Cannot (reserve memory for the CPU device: the system does not provide 4 GiB of address space|start \d+ threads? for the CPU device: the system does not provide address space for them)\. Raise the limit \(ulimit -v\)\n$/,
        `${limit} KiB`,
      );
    }
    return status;
  }));
  t.strictSame([...seen], [3, 0], "small limits fail, a large one suffices");
  t.end();
});
