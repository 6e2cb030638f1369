// `switchyard plan`: its summary, problems and fixes, from a config.json and for machines that are not present.
// rotates with: engine/planner/summary/

import { Ajv } from "ajv";
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import t, { type Test } from "tap";
import {
  type Machine,
  machineRanks,
  parseMachine,
  parsePlan,
  type Plan,
  type PlanSummary,
  planSummarySchema,
  type RankBytes,
  summarizePlan,
} from "../spec/mod.ts";
import { nodeFiles } from "../cli/files.ts";
import { loadTarget, planSummary, summarizeTarget } from "../engine/mod.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { repositoryFile } from "./helpers/sessions.ts";
import { inTurn, isInTurn } from "./helpers/seed.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const CONFIGS = path.join(ROOT, "test/references/configs");
const OLMOE = checkpointFolder("olmoe-16e");
const isSummary = new Ajv().compile(planSummarySchema);

/** Returns the summary of a plan and the exit code. */
async function summaryOf(
  t: Test,
  ...argv: readonly string[]
): Promise<PlanSummary & { readonly code: number }> {
  const { code, out, err } = await switchyard(["plan", ...argv, "--json"]);
  t.ok(out.startsWith("{"), err);
  const summary = JSON.parse(out) as PlanSummary;
  t.ok(isSummary(summary), JSON.stringify(isSummary.errors));
  t.equal(code, summary.problems.length > 0 ? 3 : 0, "exit code");
  t.equal(err === "", summary.problems.length === 0, err);
  return { ...summary, code };
}

/** Writes a machine file with this many devices and memory per device. */
function machineFile(
  t: Test,
  { ranks, memory, limits }: {
    readonly ranks: number;
    readonly memory: number;
    readonly limits?: { readonly [limit: string]: number };
  },
): string {
  const file = path.join(temporaryFolder(t), "machine.json");
  const machine: Machine = {
    version: 1,
    name: "made up",
    devices: {
      d: {
        multiplyAdds: 1,
        operations: 1,
        bandwidth: 1,
        launch: 0,
        memory,
        limits: {
          maxBufferSize: 2 ** 40,
          maxStorageBufferBindingSize: 2 ** 40,
        },
        ...limits ? { limits } : {},
      },
    },
    hosts: [{ devices: [{ kind: "d", count: ranks }] }],
    links: { sameHost: { latency: 0, bandwidth: 1, per: "rank" } },
  };
  writeFileSync(file, JSON.stringify(machine));
  return file;
}

t.test("the schema of summaries is valid", (t) => {
  t.ok(new Ajv().validateSchema(planSummarySchema));
  t.end();
});

t.test("every machine file is complete and names its source", async (t) => {
  const folder = path.join(ROOT, "machines");
  const ranks: { [name: string]: number } = {};
  for (const file of readdirSync(folder)) {
    const machine = parseMachine(readFileSync(path.join(folder, file), "utf8"));
    ranks[file.replace(/\.json$/, "")] = machineRanks(machine);
    t.match(machine.source, /Specifications, nothing measured/, file);
    for (const device of Object.values(machine.devices)) {
      const { memory, limits, computer, disk } = device;
      t.ok(memory! >= 16e9, `${file} has memory`);
      t.ok(
        computer === "native"
          ? disk! > 1e9
          : limits!["maxStorageBufferBindingSize"]! > 2 ** 31,
        `${file} has limits, or a disk`,
      );
    }
    t.equal(
      machineRanks(machine) > 1,
      machine.links.sameHost !== undefined,
      `${file} has links if it has several ranks`,
    );
  }
  t.strictSame(ranks, {
    "1x24gb": 1,
    "2x24gb": 2,
    "4x24gb": 4,
    "8x24gb": 8,
    "64x8xh100": 512,
    "64x8xh800": 512,
    "8xh100": 8,
    "8xh800": 8,
    "8xmi300x": 8,
    "gb200-nvl72": 72,
    "laptop-16gb": 1,
  });
  const unknown = await switchyard(["plan", OLMOE, "--target", "9xh100"]);
  t.equal(unknown.code, 1);
  t.match(
    unknown.err,
    /^Cannot find machine '9xh100': it is no file, and no name of 1x24gb, .*gb200-nvl72/,
  );
});

t.test("published models from their config.json", async (t) => {
  const published = JSON.parse(
    readFileSync(path.join(CONFIGS, "published.json"), "utf8"),
  ) as { readonly [name: string]: { readonly bytes?: number } };
  for (const [name, { bytes }] of inTurn(Object.entries(published), 2)) {
    await t.test(name, async (t) => {
      const file = path.join(CONFIGS, `${name}.json`);
      const summary = await summaryOf(t, file, "--target", "8xmi300x");
      const { model, ranks, layers, mesh } = summary;
      if (bytes !== undefined) t.equal(model.bytes, bytes);
      t.strictSame(mesh, { ep: 8 }, "all ranks of the machine");
      t.equal(ranks.reduce((n, { count }) => n + count, 0), 8);
      const config = JSON.parse(readFileSync(file, "utf8"));
      const { num_hidden_layers: depth } = config.text_config ?? config;
      t.equal(
        layers.filter(({ kind }) => kind !== "vocabulary")
          .reduce((n, { count }) => n + count, 0),
        depth,
      );
      // Matmuls use nearly all active parameters, but not norms, biases and a row of the embedding.
      const flops = layers.reduce((n, l) => n + l.count * l.flopsPerToken, 0);
      const share = flops / 2 / model.activeParameters!;
      t.ok(share > 0.99 && share <= 1, `${share} of the active parameters`);
      const [bounds, times] = summary.notes.slice(-2);
      t.match(
        bounds,
        "bounds by default: --max-tokens 512, --max-sequences 8, --max-context 4096",
      );
      t.match(times, /^times assume f32 arithmetic at 81\.7 T multiply-adds/);
      const { decode } = summary.predicted!;
      t.ok(decode!.memoryFloor > 0 && decode!.memoryFloor < decode!.seconds);
    });
  }
});

t.test("DeepSeek-V3 on 2,048 ranks", async (t) => {
  const file = path.join(CONFIGS, "deepseek-v3.json");
  const { ranks } = await summaryOf(t, file, "--mesh", "dp=32,ep=64");
  t.equal(ranks.reduce((n, { count }) => n + count, 0), 2048);
});

t.test("ranks hold the bytes of files: experts sharded, the rest replicated", async (t) => {
  for (const name of ["deepseek-v3", "mixtral-8x7b"]) {
    const file = path.join(CONFIGS, `${name}.json`);
    const small = ["--max-tokens", "16", "--max-sequences", "1"];
    const on = async (ep: number) =>
      (await summaryOf(t, file, "--mesh", `ep=${ep}`, ...small)).ranks[0]!
        .bytes.weights;
    const { model, ranks } = await summaryOf(t, file, ...small);
    const one = ranks[0]!.bytes.weights;
    const [two, four] = [await on(2), await on(4)];
    // FP8 groups have separate scales, and weights without a decoder are f32: DeepSeek-V3's latent projections.
    const max = name === "deepseek-v3" ? 1.04 : 1;
    t.ok(one >= model.bytes && one <= max * model.bytes, `${one} bytes`);
    t.equal(one - two, 2 * (two - four), "half and a quarter of the experts");
  }
});

t.test("a summary matches the plan", async (t) => {
  const argv = [OLMOE, "--mesh", "ep=4"];
  const { ranks, layers, model } = await summaryOf(t, ...argv);
  const file = path.join(temporaryFolder(t), "plan.json");
  await switchyard(["plan", ...argv, "--out", file]);
  const plan = JSON.parse(readFileSync(file, "utf8")) as Plan;
  const { count, first, experts, bytes } = ranks[0]!;
  t.strictSame([ranks.length, count, first, experts], [1, 4, 0, [4]]);
  t.equal(bytes.total, plan.peakBytes, "ranks share a device");
  t.equal(bytes.weights + bytes.state + bytes.scratch, plan.peakBytes);
  // 4 choices of 64 f32; three quarters of them go to other ranks.
  const exchange = { bytesPerToken: 4 * 64 * 4 * 3 / 4, over: ["ep"] };
  t.strictSame(layers.map(({ exchanges }) => exchanges), [
    [{ name: "dispatch", ...exchange }, { name: "combine", ...exchange }],
    [],
  ]);
  const saved = await summaryOf(t, file);
  t.strictSame(saved.ranks, ranks, "a saved plan gives the same");
  t.strictSame(
    [saved.model.parameters, saved.model.bytes],
    [model.parameters, model.bytes],
  );
  const complete = await switchyard(["plan", ...argv, "--json", "--full"]);
  t.equal(
    complete.out,
    readFileSync(file, "utf8"),
    "--json --full prints the document",
  );
});

t.test("representative layers give the memory of all layers, scratch within 0.5 %, and the time within 2 %", async (t) => {
  const machine = parseMachine(
    readFileSync(path.join(ROOT, "machines/8xmi300x.json"), "utf8"),
  );
  for (const name of inTurn(["olmoe-1b-7b", "deepseek-v2-lite"], 2)) {
    const target = await loadTarget(
      path.join(CONFIGS, `${name}.json`),
      nodeFiles(),
      { withoutWeights: true },
    );
    const mesh = { dp: 2, ep: 2, tp: 2 };
    const { plan, summary } = await summarizeTarget(target, nodeFiles(), {
      machine,
      mesh,
    });
    const complete = planSummary(await plan(), { machine });
    const [held, all] = [summary, complete].map(({ ranks }) =>
      ranks.map(({ bytes, headroom: _, ...rank }) => {
        const { scratch, total, ...exact } = bytes;
        return { ...rank, exact, scratch, rest: total - scratch };
      })
    );
    // The gather of all layers' norms at once is as long as all of them together.
    for (const [i, rank] of held!.entries()) {
      const ratio = rank.scratch / all![i]!.scratch;
      t.ok(Math.abs(ratio - 1) < 0.005, `${name}: scratch ${ratio}`);
      t.strictSame({ ...rank, scratch: 0 }, { ...all![i]!, scratch: 0 }, name);
    }
    t.equal(held!.length, all!.length);
    t.equal(summary.model.parameters, complete.model.parameters);
    for (const phase of ["prefill", "decode"] as const) {
      const [some, all] = [summary, complete].map(({ predicted }) =>
        predicted![phase]!
      );
      const ratio = some!.seconds / all!.seconds;
      t.ok(Math.abs(ratio - 1) < 0.02, `${name}: ${phase} ${ratio}`);
      const seconds = summary.layers.reduce(
        (n, layer) => n + layer.count * layer.seconds![phase]!.total,
        0,
      );
      t.ok(Math.abs(seconds / some!.seconds - 1) < 1e-6, "sum over all layers");
      t.equal(some!.tokensPerSecond, some!.tokens / some!.seconds);
      t.ok(some!.parts[some!.bound] >= some!.seconds / 6, some!.bound);
    }
  }
});

t.test("bytes of exchanges equal those printed for the plan, also with deduplication", async (t) => {
  const names = ["olmoe-16e", "deepseekv3-16e", "llama4-8e"];
  for (const [i, name] of names.entries()) {
    const file = path.join(temporaryFolder(t), "plan.json");
    const argv = [checkpointFolder(name), "--mesh", "ep=4"];
    const options = [[], ["--deduplicate"], ["--chunks", "2"]];
    for (const more of options.filter((_, at) => isInTurn(i + at, 3))) {
      await switchyard(["plan", ...argv, ...more, "--out", file]);
      const plan = parsePlan(readFileSync(file, "utf8"));
      const { layers } = await summaryOf(t, ...argv, ...more);
      for (const op of ["dispatch", "combine"] as const) {
        const [, printed] = new RegExp(`${op} per token.*, (\\d+) of them to`)
          .exec(summarizePlan(plan))!;
        const sent = layers.reduce(
          (n, { count, exchanges }) =>
            n +
            count * (exchanges.find((e) => e.name === op)?.bytesPerToken ??
                0),
          0,
        );
        // Layers are rounded one by one.
        const layersSent = layers.reduce((n, { count }) => n + count, 0);
        t.ok(
          Math.abs(sent - Number(printed)) <= layersSent / 2,
          `${name} ${more}: ${op} ${sent}, printed ${printed}`,
        );
      }
    }
  }
});

t.test("a model that exceeds a machine, with its experts on disk", async (t) => {
  const file = path.join(CONFIGS, "qwen3-30b-a3b.json");
  const laptop = [file, "--target", "laptop-16gb"];
  const { code, streamed, problems } = await summaryOf(t, ...laptop);
  t.equal(code, 3, "the GPU has too little memory");
  t.match(
    problems[0]!.fix,
    /^--adapter native --expert-memory auto, or --mesh/,
  );
  t.ok(streamed!.ranks[0]!.headroom! >= 0, "the CPU has enough memory");
  // 48 layers, 8 of 128 experts with three bf16 matrices.
  const expert = 3 * 2048 * 768 * 2;
  const one = [...laptop, "--max-sequences", "1"];
  const decode = async (...flags: readonly string[]) => {
    const summary = await summaryOf(t, ...one, ...flags);
    t.equal(summary.code, 0);
    const { bytes, all } = summary.ranks[0]!.expertMemory!;
    t.equal(all, 48 * 128 * expert);
    const { streamed, parts, seconds } = summary.predicted!.decode!;
    const { bytes: read, hitRate } = streamed!;
    const missed = (1 - hitRate) * 48 * 8 * expert;
    t.ok(Math.abs(read / missed - 1) < 1e-6, `${read} bytes, misses ${missed}`);
    t.ok(
      parts.disk > 0 && seconds > read / 7e9,
      "at the speed of the machine's disk",
    );
    const total = Object.values(parts).reduce((n, part) => n + part, 0);
    t.ok(Math.abs(total / seconds - 1) < 1e-9, "the parts sum to the step");
    t.equal(
      summary.predicted!.prefill!.streamed!.hitRate,
      0,
      "no expert is in memory at first",
    );
    return { bytes, hitRate };
  };
  const even = await decode("--expert-memory", "10GiB");
  t.equal(even.bytes, 10 * 2 ** 30);
  t.ok(even.hitRate > 0.1 && even.hitRate < 0.2, `${even.hitRate} of uniform`);
  const more = await decode("--expert-memory", "20GiB");
  const skewed = await decode(
    "--expert-memory",
    "10GiB",
    "--experts",
    "zipf:0.8",
  );
  t.ok(more.hitRate > 2 * even.hitRate, "more memory");
  t.ok(skewed.hitRate > 2 * even.hitRate, "a few experts are used most");
  const text = await switchyard(["plan", ...laptop]);
  t.match(
    text.out,
    /with experts on disk, by 'Intel Core i9-13980HX'\n.*in memory/,
  );
  t.match(text.out, /disk, per token +hit rate\n/);

  const small = await summaryOf(t, ...one, "--expert-memory", "1MB");
  t.match(small.problems[0]!.what, /^experts have .* and 2 of a layer need 12/);
  for (
    const [argv, code, message] of [
      [["--target", "8xh100"], 1, /'8 H100 .*' has no native CPU device/],
      [[], 2, /--expert-memory without --target/],
      [
        ["--target", "laptop-16gb", "--train"],
        2,
        /--expert-memory with --train/,
      ],
    ] as const
  ) {
    const planned = await switchyard([
      "plan",
      file,
      ...argv,
      "--expert-memory",
      "1GB",
    ]);
    t.equal(planned.code, code);
    t.match(planned.err, message);
  }
});

t.test("one layer and one rank", async (t) => {
  const argv = [OLMOE, "--mesh", "ep=3"];
  const all = await summaryOf(t, ...argv);
  t.strictSame(
    all.ranks.map(({ first, count, experts }) => [first, count, experts]),
    [[0, 1, [6]], [1, 1, [5]], [2, 1, [5]]],
  );
  const one = await summaryOf(t, ...argv, "--rank", "2", "--layer", "1");
  t.strictSame(one.ranks, [all.ranks[2]]);
  t.strictSame(one.layers, [{ ...all.layers[0]!, count: 1, layers: "1" }]);
  const text = (await switchyard(["plan", ...argv, "--layer", "1"])).out;
  t.match(text, /model\.layers\.1\.self_attn\.q_proj\.weight/);
  t.match(text, /\n {2}%\d+ = dispatch /, "its steps");
  t.notMatch(text, /model\.layers\.0\.|lm_head/, "no other layers");
  for (const [flag, n] of [["--layer", "7"], ["--rank", "3"]] as const) {
    const { code, err } = await switchyard(["plan", ...argv, flag, n]);
    t.strictSame([code, /^Cannot show (layer 7|rank 3): /.test(err)], [
      1,
      true,
    ]);
  }
  t.equal(
    (await switchyard(["plan", OLMOE, "--rank", "3"])).err,
    "Cannot show rank 3: the plan has 1 rank. Leave the rank out\n",
  );
});

/** Returns the summary of the plan with a fix applied. */
async function withFix(
  t: Test,
  argv: readonly string[],
  fix: string,
): Promise<PlanSummary> {
  return await summaryOf(t, ...argv, ...fix.split(" "));
}

t.test("the fix of a problem solves it, and no smaller fix does", async (t) => {
  const long = ["--max-context", "2048"];
  const wide = ["--max-tokens", "2048"];
  const cases: readonly (readonly [
    what: string,
    bounds: readonly string[],
    missing: (bytes: RankBytes) => number,
    fix: RegExp,
  ])[] = [
    ["sequences", long, (b) => 0.6 * b.state, /^--max-sequences (\d+)$/],
    [
      ...["the KV cache", [...long, "--max-sequences", "1"]] as const,
      (b) => 0.4 * b.state,
      /^--kv-cache-dtype bf16$/,
    ],
    ["tokens", wide, (b) => 0.6 * b.scratch, /^--max-tokens (\d+)$/],
    [
      ...["both", long] as const,
      (b) => b.state + 0.5 * b.scratch,
      /^--max-tokens \d+ --max-context (\d+)$/,
    ],
    [
      ...["experts", long] as const,
      (b) => b.total - 0.4 * b.weights,
      /^--mesh ep=16, on devices of .*: one expert of each layer is /,
    ],
  ];
  for (const [what, bounds, missing, pattern] of cases) {
    await t.test(what, async (t) => {
      const argv = [OLMOE, "--mesh", "ep=2", ...bounds, "--target"];
      const large = machineFile(t, { ranks: 2, memory: 2 ** 40 });
      const { ranks } = await summaryOf(t, ...argv, large);
      const { bytes } = ranks[0]!;
      const memory = bytes.total - missing(bytes);
      argv.push(machineFile(t, { ranks: 2, memory }));
      const { problems } = await summaryOf(t, ...argv);
      t.strictSame(problems.map(({ kind }) => kind), ["memory"]);
      t.equal(
        problems[0]!.larger ?? false,
        / on (a machine of|devices of) /.test(problems[0]!.fix),
      );
      const [, number] = pattern.exec(problems[0]!.fix) ?? [];
      t.match(problems[0]!.fix, pattern);
      if (number === undefined) return;
      const after = await withFix(t, argv, problems[0]!.fix);
      t.strictSame(after.problems, [], "solved");
      if (what === "both") return;
      const [flag] = problems[0]!.fix.split(" ");
      // Shares of tokens and received rows are estimates.
      const slack = what === "tokens" ? 1.5 : 1.2;
      const more = `${flag} ${Math.ceil(Number(number) * slack)}`;
      const less = await withFix(t, argv, more);
      t.equal(less.problems.length, 1, `${more} does not solve it`);
    });
  }
});

t.test("more ranks fix too many experts, and all problems are reported", async (t) => {
  const { ranks } = await summaryOf(
    t,
    OLMOE,
    "--mesh",
    "ep=2",
    "--max-tokens",
    "1",
    "--max-sequences",
    "1",
    "--max-context",
    "8",
  );
  const { total, weights } = ranks[0]!.bytes;
  const target = machineFile(t, {
    ranks: 8,
    memory: total - 0.3 * weights,
  });
  const argv = [
    OLMOE,
    "--target",
    target,
    "--max-tokens",
    "1",
    "--max-sequences",
    "1",
    "--max-context",
    "8",
  ];
  const [problem] = (await summaryOf(t, ...argv, "--mesh", "ep=2")).problems;
  t.match(problem!.fix, /^--mesh ep=\d$/);
  t.strictSame((await withFix(t, argv, problem!.fix)).problems, []);

  const tight = machineFile(t, {
    ranks: 2,
    memory: 1e6,
    limits: { maxBufferSize: 2 ** 16, maxStorageBufferBindingSize: 2 ** 16 },
  });
  const all = await summaryOf(t, OLMOE, "--target", tight, "--mesh", "ep=4");
  const limits = ["maxBufferSize", "maxStorageBufferBindingSize"];
  t.strictSame(
    all.problems.map(({ what }) =>
      what.replace(/\(and \d+ more\) /, "").replace(/= \d+/, "=")
        .replace(/needs [\d.]+ MiB/, "needs MiB")
    ),
    [
      "the mesh has 4 ranks, and 'made up' has 2",
      "each of 4 ranks needs MiB, and has 976.6 KiB",
      ...limits.flatMap((limit) => [
        `buffer 'layers.0.sent' needs ${limit} =, and 65536 is allowed`,
        `buffer 'model.layers.0.self_attn.keys' needs ${limit} =, and 65536 is allowed`,
      ]),
    ],
  );
});

t.test("without a machine, only given limits apply", async (t) => {
  const argv = [OLMOE, "--mesh", "ep=2", "--max-context", "4096"];
  t.strictSame((await summaryOf(t, ...argv)).problems, []);
  const { problems } = await summaryOf(
    t,
    ...[...argv, "--limits", "maxBufferSize=1048576"],
  );
  t.strictSame(problems, [{
    kind: "limit",
    what:
      "buffer 'model.layers.0.self_attn.keys' (and 3 more) needs maxBufferSize = 4194304, and 1048576 is allowed",
    fix: "--max-context 1024",
  }]);
  const bad = await switchyard(["plan", OLMOE, "--limits", "maxBuffer=1"]);
  t.equal(bad.code, 2);
  t.match(
    bad.err,
    /plans have no limit 'maxBuffer'\. Give one of maxBufferSize, /,
  );
});

t.test("a folder without weights is planned and not run", async (t) => {
  const folder = path.join(temporaryFolder(t), "model");
  mkdirSync(folder);
  copyFileSync(
    path.join(OLMOE, "config.json"),
    path.join(folder, "config.json"),
  );
  const { model } = await summaryOf(t, folder);
  t.strictSame(model.stored, { f32: model.bytes });
  const packed = await summaryOf(t, folder, "--dtype", "fp8");
  t.ok(packed.model.bytes < model.bytes / 2);
  const run = await switchyard(["generate", folder, "--tokens", "1"]);
  t.strictSame([run.code, run.err], [
    1,
    `Cannot read '${folder}': it has no safetensors file. Copy model.safetensors there\n`,
  ]);
  const there = await switchyard(["plan", OLMOE, "--dtype", "bf16"]);
  t.equal(there.code, 2);
  t.match(
    there.err,
    /Cannot use --dtype without --train: .* defines the dtype of its weights/,
  );
});

t.test("a diff of plans ignores column widths", async (t) => {
  const mesh = (ep: number) =>
    switchyard([
      "plan",
      OLMOE,
      "--mesh",
      `ep=${ep}`,
      "--out",
      path.join(folder, `${ep}`),
    ]);
  const folder = temporaryFolder(t);
  await mesh(2);
  await mesh(4);
  const file = (ep: number) => `${path.join(folder, `${ep}`)}`;
  for (const ep of [2, 4]) {
    writeFileSync(`${file(ep)}.json`, readFileSync(file(ep)));
  }
  const { code, out } = await switchyard([
    "plan",
    "--diff",
    "--full",
    `${file(2)}.json`,
    `${file(4)}.json`,
  ]);
  t.equal(code, 0);
  const [table, ...rest] = out.split("\n\n");
  t.match(table, /^ +\S+2\.json +\S+4\.json\n\* mesh +ep=2 +ep=4\n/);
  t.ok(rest.length > 0, "a diff by line follows");
  const { out: short } = await switchyard([
    ...["plan", "--diff", `${file(2)}.json`, `${file(4)}.json`],
  ]);
  t.equal(short.trimEnd(), table);
  const lines = out.split("\n");
  t.ok(lines.length < 120, `${lines.length} lines`);
  t.ok(lines.includes("- mesh  ep=2 (2 ranks)"));
  t.ok(lines.includes("+ mesh  ep=4 (4 ranks)"));
  t.notMatch(out, /%\d+ /, "steps have no numbers");
  const same = await switchyard([
    "plan",
    "--diff",
    `${file(2)}.json`,
    `${file(2)}.json`,
  ]);
  t.equal(same.out, "the plans are the same\n");
});

t.test("experts of a rank: one number per layer size", async (t) => {
  const two = repositoryFile("examples/two_moe.ts");
  const { ranks } = await summaryOf(t, two, "--mesh", "ep=2");
  t.strictSame(ranks.map(({ experts }) => experts), [[3, 5]]);
  const { out } = await switchyard(["plan", two, "--mesh", "ep=2"]);
  t.match(out, /\n2 from 0 +3 or 5 /);
});

t.test("fewer bits per expert fix a memory problem, and each problem is reported once", async (t) => {
  const folder = temporaryFolder(t);
  const config = path.join(folder, "config.json");
  copyFileSync(path.join(OLMOE, "config.json"), config);
  const argv = [config, "--max-sequences", "1", "--mesh", "ep=2"];
  const large = machineFile(t, { ranks: 2, memory: 2 ** 40 });
  const { ranks } = await summaryOf(t, ...argv, "--target", large);
  const { total, weights } = ranks[0]!.bytes;
  const memory = Math.floor(total - 0.3 * weights);
  argv.push("--target", machineFile(t, { ranks: 2, memory }));
  const [problem] = (await summaryOf(t, ...argv)).problems;
  t.equal(problem!.fix, "--dtype fp8");
  t.strictSame((await withFix(t, argv, problem!.fix)).problems, []);
  const { code, out, err } = await switchyard(["plan", ...argv]);
  t.strictSame([code, err], [3, ""]);
  t.equal(out.match(/does not fit/g)?.length, 1);
});

t.test("a file that is neither a configuration nor a plan, and an unknown dtype", async (t) => {
  const file = path.join(temporaryFolder(t), "config.json");
  const refused = async (config: object, message: RegExp) => {
    writeFileSync(file, JSON.stringify(config));
    const { code, err } = await switchyard(["plan", file]);
    t.equal(code, 1);
    t.match(err, message);
  };
  // tokenizer.json has a version, too.
  for (const other of [{}, { version: "1.0", model: {} }]) {
    await refused(
      other,
      /it has neither the 'architectures' of a config\.json nor the 'version' of a plan\. Give one of them/,
    );
  }
  const config = JSON.parse(
    readFileSync(path.join(OLMOE, "config.json"), "utf8"),
  );
  await refused(
    { ...config, torch_dtype: "bfloat61" },
    /its dtype is "bfloat61"\. Known ones are float32, float16, bfloat16; or give the dtype of the weights with --dtype/,
  );
});
