// Context parallelism: the bytes of one rank, caches of local positions only, and verification of every transfer.
// needs: cpu
// rotates with: compiler/sharding/caches.ts, compiler/passes/lower/attention
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import {
  loadTarget,
  type PlanOptions,
  planSummary,
  runOpened,
} from "../engine/mod.ts";
import { search } from "../engine/planner/search/mod.ts";
import { parseMachine } from "../spec/machine.ts";
import { verifyPlan } from "../spec/mod.ts";
import { onRank, type Plan, type Step } from "../spec/plan/plan.ts";
import { viewPlan } from "../view/plan_view.ts";
import { trafficOf } from "../view/traffic.ts";
import {
  checkpointFolder,
  files,
  loadCheckpoint,
  padBatch,
  planOn,
  type Setup,
} from "./helpers/checkpoints.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { bytesOf } from "./helpers/run_bytes.ts";
import { repositoryFile } from "./helpers/sessions.ts";
import { inTurn, oneInTurn } from "./helpers/seed.ts";

/** Tokens of a prompt of the given length. */
function promptOf(length: number, seed = 0): number[] {
  return Array.from({ length }, (_, i) => (i * i * 7 + i * 3 + seed) % 90);
}

/** Prompts that end on each of four ranks. */
const PROMPTS = [3, 40, 70, 118].map((length, s) => promptOf(length, s));

const BOUNDS = { maxContext: 128, maxTokens: 64 };

const FAMILIES: readonly {
  readonly name: string;
  readonly title: string;
  readonly setups: readonly Setup[];
}[] = [
  {
    name: "granitemoe-8e",
    title: "grouped queries",
    setups: [
      { mesh: "cp=2" },
      { mesh: "cp=4", pages: { size: 16, count: 12 } },
      { mesh: "cp=2,ep=2", kvCacheDtype: "bf16" },
    ],
  },
  {
    name: "gptoss-8e",
    title: "sinks and windows",
    setups: [
      { mesh: "cp=4", sharing: "separate" },
      { mesh: "cp=2,tp=2", pages: { size: 32, count: 8 } },
      { mesh: "pp=2,cp=2" },
    ],
  },
  {
    name: "deepseekv3-16e",
    title: "latent attention",
    setups: [{ mesh: "cp=4" }, { mesh: "dp=2,cp=2" }],
  },
  {
    name: "qwen3next-16e",
    title: "recurrent layers",
    setups: [{ mesh: "cp=4" }],
  },
];

for (const { name, title, setups } of inTurn(FAMILIES, 2)) {
  t.test(`${name} with ${title}`, async (t) => {
    const bytesOn = (setup: Setup) =>
      bytesOf(name, { bounds: BOUNDS, ...setup }, PROMPTS);
    const one = await bytesOn({ mesh: "ep=1" });
    for (const setup of setups.length > 1 ? oneInTurn(setups) : setups) {
      const { mesh, pages, sharing, kvCacheDtype } = setup;
      const wanted = kvCacheDtype
        ? await bytesOn({ mesh: "ep=1", kvCacheDtype })
        : one;
      t.equal(
        await bytesOn(setup),
        wanted,
        `${mesh} ${sharing ?? ""} ${pages ? "in pages" : ""}`,
      );
    }
  });
}

function planOf(
  name: string,
  mesh: string,
  options: PlanOptions = {},
): Promise<Plan> {
  return planOn(name, mesh, { bounds: BOUNDS, ...options });
}

t.test("a context too long for one rank", async (t) => {
  const folder = temporaryFolder(t);
  const model = checkpointFolder("granitemoe-8e");
  const file = (name: string) => path.join(folder, name);
  // The last token is on the third of four ranks.
  await writeRaw(file("ids"), {
    input_ids: integers([1, 2100], promptOf(2100)),
  });
  const bounds = [
    "--max-context",
    "4096",
    "--max-sequences",
    "1",
    "--max-tokens",
    "256",
  ];
  const planOn = async (mesh: string) =>
    await switchyard([
      ...["plan", model, "--mesh", mesh, ...bounds],
      ...["--limits", `maxBufferSize=${300 * 2 ** 10}`],
      ...["--out", file(`${mesh}.json`)],
    ]);
  const run = async (model: string, more: readonly string[]) => {
    const { code, err } = await switchyard([
      ...["run", model, "--inputs", file("ids"), "--outputs", file("out")],
      ...["--adapter", "cpu", ...more],
    ]);
    t.equal(code, 0, err);
    return createHash("sha256").update(readFileSync(file("out"))).digest("hex");
  };
  const rejected = await planOn("ep=1");
  t.equal(rejected.code, 3, rejected.err);
  t.match(rejected.out, /maxBufferSize/);
  const wanted = await run(model, ["--mesh", "ep=1", ...bounds]);
  for (const mesh of inTurn(["cp=2", "cp=4"], 2)) {
    const { code, out, err } = await planOn(mesh);
    t.equal(code, 0, out + err);
    t.equal(
      await run(file(`${mesh}.json`), ["--weights", model]),
      wanted,
      mesh,
    );
  }
});

t.test("a rank has the caches of its positions, and sends keys or sums, whichever has fewer bytes", async (t) => {
  const one = await planOf("granitemoe-8e", "ep=1");
  for (const n of [2, 4]) {
    const plan = await planOf("granitemoe-8e", `cp=${n}`);
    for (const [name, { kind, bytes }] of Object.entries(one.buffers)) {
      if (kind !== "state") continue;
      t.equal(plan.buffers[name]!.bytes, onRank(bytes, 0) / n, name);
    }
    const { axes } = plan;
    const loaded = await loadCheckpoint("granitemoe-8e", {
      mesh: `cp=${n}`,
      adapter: "cpu",
      bounds: BOUNDS,
    });
    const steps = stepsOf(PROMPTS, BOUNDS.maxTokens);
    await runOpened(loaded, padBatch(PROMPTS));
    const { ranks } = loaded.session.statistics();
    await loaded.close();
    const [head, dim] = [axes["head"]!.size, axes["headDim"]!.size];
    const kvHead = axes["kvHead"]!.size;
    const layers = 3;
    const wanted = new Array<number>(n).fill(0);
    let keys = 0;
    for (const { tokens, past } of steps) {
      const blocks = past.flatMap((length) =>
        Array.from({ length: Math.ceil(length / 32) }, (_, block) => block)
      );
      const [ofKeys, ofSums] = [
        32 * kvHead * 2 * dim * 4,
        head * (dim + 2) * 4,
      ];
      const gathers = blocks.length * ofKeys < 2 * tokens * ofSums;
      if (gathers) keys++;
      // Each rank sends earlier keys to all others, or running sums to the next rank; the last one sends the total.
      for (const rank of wanted.keys()) {
        const held = blocks.filter((block) =>
          Math.floor(32 * block * n / BOUNDS.maxContext) === rank
        ).length;
        wanted[rank]! += layers * (gathers
          ? held * ofKeys * (n - 1)
          : tokens * ofSums * (rank < n - 1 ? 1 : n - 1));
      }
    }
    t.ok(keys > 1 && keys < steps.length, "some steps gather keys");
    for (const [rank, { sentBytes: { attention } }] of ranks.entries()) {
      const bytes = wanted[rank];
      t.strictSame(
        attention,
        { predicted: bytes, actual: bytes },
        `cp=${n}, rank ${rank}`,
      );
    }
  }
});

/** Number of tokens of each step of a padded batch, and the earlier tokens of its sequences. */
function stepsOf(prompts: readonly (readonly number[])[], maxTokens: number) {
  const all = prompts.flatMap((prompt, s) =>
    prompt.map((_, position) => ({ s, position }))
  );
  return Array.from(
    { length: Math.ceil(all.length / maxTokens) },
    (_, step) => {
      const tokens = all.slice(step * maxTokens, (step + 1) * maxTokens);
      const first = new Map<number, number>();
      for (const { s, position } of tokens) {
        if (!first.has(s)) first.set(s, position);
      }
      return { tokens: tokens.length, past: [...first.values()] };
    },
  );
}

t.test("unshardable positions are rejected", async (t) => {
  const cases = [
    [
      "granitemoe-8e",
      { bounds: { maxContext: 100 } },
      /Cannot shard axis 'context' over 'cp': its 100 positions are not divisible into blocks of 32 keys for 2 ranks. Use a multiple of 64, such as 128/,
    ],
    [
      "granitemoe-8e",
      { pages: { size: 24, count: 6 } },
      /a rank has 64 positions of a sequence, which pages of 24 do not divide. Give pages of a size that divides them/,
    ],
    [
      "granitemoe-8e",
      { pages: { size: 16, count: 3 } },
      /they hold 48 of the 64 positions that a sequence may have on a rank. Give 4 pages of that size \(--pages 4x16\), or a shorter context \(--max-context 96\)/,
    ],
    [
      "deepseekv32-16e",
      {},
      /Cannot shard axis 'context' over 'cp': the model selects keys among all positions of a sequence/,
    ],
  ] as const;
  for (const [name, options, message] of cases) {
    await t.rejects(planOf(name, "cp=2", options), { message });
  }
});

t.test("plans with missing, repeated or swapped transfers are rejected", async (t) => {
  const plan = await planOf("gptoss-8e", "cp=4");
  t.strictSame(verifyPlan(plan), []);
  const all = plan.programs[0]!.steps;
  const sends = all.flatMap(({ op }, i) => op === "send" ? i : []);
  t.equal(sends.length, 4 * 6);
  const rejected = (title: string, change: (steps: Step[]) => void) => {
    const programs = structuredClone(plan.programs);
    change(programs[0]!.steps as Step[]);
    t.not(verifyPlan({ ...plan, programs }).length, 0, title);
  };
  // Transfers of one layer.
  for (const [n, at] of sends.slice(0, 6).entries()) {
    rejected(`transfer ${n} dropped`, (steps) => steps.splice(at, 1));
    rejected(
      `transfer ${n} twice`,
      (steps) => steps.splice(at, 0, structuredClone(steps[at]!)),
    );
    rejected(`transfer ${n} backwards`, (steps) => {
      const step = steps[at] as unknown as { stages: number[] };
      step.stages.reverse();
    });
    rejected(`transfer ${n} before its value`, (steps) => {
      const [step] = steps.splice(at, 1);
      steps.splice(sends[0]! - 1, 0, step!);
    });
    rejected(`transfer ${n} to another buffer`, (steps) => {
      const other = steps[sends[n < 3 ? 3 : 0]!] as { to: string };
      (steps[at] as unknown as { to: string }).to = other.to;
    });
  }
  const attends = all.flatMap((step, i) =>
    i < sends[5]! && step.op === "launch" && step.ranks !== "all" ? i : []
  );
  t.equal(attends.length, 4);
  for (const [rank, at] of attends.entries()) {
    rejected(
      `attention on rank ${rank} dropped`,
      (steps) => steps.splice(at, 1),
    );
    rejected(`attention on rank ${rank} on the next`, (steps) => {
      const other = steps[attends[(rank + 1) % 4]!]!;
      (steps[at] as unknown as { ranks: unknown }).ranks = other.ranks;
    });
    if (rank === 0) continue;
    rejected(`attention on rank ${rank} without earlier sums`, (steps) => {
      const [of, first] = [steps[at], steps[attends[0]!]] as unknown as {
        kernel: string;
        bindings: object;
      }[];
      of!.kernel = first!.kernel;
      of!.bindings = first!.bindings;
    });
  }
});

t.test("the page shows the transfers of a layer", async (t) => {
  const plan = await planOf("granitemoe-8e", "cp=4");
  const view = viewPlan(plan, planSummary(plan));
  const [program] = view.programs;
  const section = program!.sections.find(({ layers }) => layers.length > 0)!;
  const sends = trafficOf(view, program!, section)
    .filter(({ name }) => name === "send");
  const ranks = [0, 1, 2, 3];
  const bytes = ranks.flatMap((a) =>
    ranks.flatMap((b) => sends.map(({ between }) => between(a, b)))
  ).reduce((a, b) => a + b, 0);
  const { token, head, headDim } = plan.axes;
  t.equal(
    bytes,
    2 * 3 * 4 * token!.size * head!.size * (headDim!.size + 2),
  );
});

t.test("search uses cp if the context does not fit otherwise", async (t) => {
  const target = await loadTarget(
    repositoryFile("test/references/configs/deepseek-v2-lite.json"),
    files,
    { withoutWeights: true },
  );
  if (target.kind === "plan") return t.fail("a configuration is no plan");
  const file = repositoryFile("machines/4x24gb.json");
  const machine = parseMachine(readFileSync(file, "utf8"), file);
  const { found, thrownOut } = await search({
    target,
    files,
    // One device per host, so that tp is not used.
    machine: {
      ...machine,
      devices: { gpu: { ...machine.devices["gpu"]!, memory: 18e9 } },
      hosts: [{
        ...machine.hosts[0]!,
        devices: [{ kind: "gpu", count: 1 }],
        count: 4,
      }],
      links: { ...machine.links, otherHost: machine.links.sameHost! },
    },
    phase: "decode",
    context: 131072,
    compile: {},
    objective: "latency",
  });
  t.ok(thrownOut.some(({ mesh: { pp, cp } }) => pp === undefined && !cp));
  t.strictSame(
    new Set(found.flatMap(({ mesh }) => Object.keys(mesh))),
    new Set(["ep", "tp", "pp", "cp"]),
  );
});
