// `switchyard search` on hypothetical machines on which the best configuration can be derived by hand.
// rotates with: engine/planner/

import { execFile } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import t, { type Test } from "tap";
import { searchTask } from "../cli/commands/search.ts";
import { nodeFiles } from "../cli/files.ts";
import { findMachine } from "../cli/machines.ts";
import { main } from "../cli/main.ts";
import { configurationOf } from "../engine/checkpoint/configuration.ts";
import {
  helpSearch,
  knownOf,
  planSummary,
  planTraining,
  type SearchHelper,
} from "../engine/mod.ts";
import type { Crossover } from "../engine/planner/search/mod.ts";
import { simulate } from "../engine/planner/simulate/mod.ts";
import {
  meshName,
  overNodes,
  replicaMeshes,
  trainingMeshes,
} from "../engine/planner/search/meshes.ts";
import { compileTrainingRepresentatives } from "../engine/planner/summary/training.ts";
import type { Machine, MachineLink, Plan } from "../spec/mod.ts";
import { type Strategy, triedStrategies } from "../spec/strategies.ts";
import { switchyard, temporaryFolder, withOutput } from "./helpers/cli.ts";

const CONFIGS = fileURLToPath(new URL("references/configs", import.meta.url));
const GRANITE = path.join(CONFIGS, "granite-3.0-1b-a400m.json");

/** Four devices on one host. */
const NODE: Machine = {
  version: 1,
  name: "node",
  devices: {
    d: {
      multiplyAdds: 1e14,
      operations: 1e14,
      bandwidth: 1e12,
      launch: 1e-6,
    },
  },
  hosts: [{ devices: [{ kind: "d", count: 4 }] }],
  links: { sameHost: { latency: 2e-5, bandwidth: 1e11, per: "rank" } },
};

/** Writes a machine of two devices with slow memory reads and free computation. */
function machineFile(t: Test, link: MachineLink, memory: number): string {
  const file = path.join(temporaryFolder(t), "machine.json");
  const machine: Machine = {
    version: 1,
    name: "two devices",
    devices: {
      d: {
        multiplyAdds: 1e18,
        operations: 1e18,
        bandwidth: 1e11,
        launch: 1e-6,
        memory,
        limits: {
          maxBufferSize: 2 ** 40,
          maxStorageBufferBindingSize: 2 ** 40,
        },
      },
    },
    hosts: [{ devices: [{ kind: "d", count: 2 }] }],
    links: { sameHost: link },
  };
  writeFileSync(file, JSON.stringify(machine));
  return file;
}

interface Document {
  readonly assumes?: string;
  readonly found: readonly {
    readonly mesh: { readonly ep: number; readonly tp: number };
    readonly replicas: number;
    readonly strategy: Strategy & {
      readonly zero?: number;
      readonly recompute?: boolean;
    };
    readonly bytes: number;
    readonly limit: number;
    readonly seconds: number;
    readonly tokensPerSecond: number;
    readonly why: string;
  }[];
  readonly thrownOut: readonly { readonly why: string }[];
  readonly crossover?: Crossover;
  readonly curve: readonly {
    readonly devices: number;
    readonly best?: { readonly tokensPerSecond: number };
  }[];
}

async function searched(
  t: Test,
  machine: string,
  ...argv: readonly string[]
): Promise<Document> {
  const { code, out, err } = await switchyard([
    ...["search", GRANITE, "--target", machine, "--max-context", "256"],
    ...[...argv, "--json"],
  ]);
  t.equal(code, 0, err);
  return JSON.parse(out) as Document;
}

t.test("replicas win if exchanges cost more than they save, and the crossover is reported", async (t) => {
  const slow = machineFile(
    t,
    { latency: 1e-2, bandwidth: 1e9, per: "rank" },
    4e9,
  );
  const against = await searched(t, slow);
  const [best, ...others] = against.found;
  t.strictSame([best!.mesh, best!.replicas], [{ ep: 1, tp: 1 }, 2]);
  const sharded = others.find(({ mesh }) => mesh.ep === 2)!;
  t.match(sharded.why, /^exchanges within a node are 9\d % of a step/);
  // An exchange takes 10 ms; all weights are read in 30 ms.
  t.strictSame(against.crossover!.crossings, []);
  t.equal(against.crossover!.first, "replicas");
  t.ok(against.crossover!.exchanged > against.crossover!.saved);

  const fast = machineFile(
    t,
    { latency: 2e-5, bandwidth: 1e12, per: "rank" },
    4e9,
  );
  const { crossover, found, curve } = await searched(t, fast);
  const { first, crossings: [crossing] } = crossover!;
  // One token chooses 8 of 32 experts. With one token per device, sharded experts read as many as replicas; with more
  // tokens, up to half as many.
  t.equal(first, "replicas", "one token per device");
  const { at, to, because } = crossing!;
  t.ok(at > 1 && at <= 8, `experts are sharded from ${at} sequences on`);
  t.strictSame([to, because], ["experts", "memory"]);
  const latency = await searched(t, fast, "--objective", "latency");
  t.strictSame(
    [latency.crossover!.to, latency.crossover!.crossings.map(({ at }) => at)],
    [crossover!.to, crossover!.crossings.map(({ at }) => at)],
    "the objective changes no compared load",
  );
  for (const { bytes, limit } of found) t.ok(bytes <= limit);
  t.ok(
    found.every(({ tokensPerSecond }, i) =>
      i === 0 || tokensPerSecond <= found[i - 1]!.tokensPerSecond
    ),
    "best first",
  );
  t.strictSame(
    [curve.length, curve[0]!.devices, curve.at(-1)!.devices],
    [13, 1, 4096],
  );
  const goal = found[0]!.seconds / 3;
  const quick = await searched(t, fast, "--max-step", `${1000 * goal}`);
  t.ok(quick.found[0]!.seconds <= goal, "the best meets the goal");
  const speeds = curve.map(({ best }) => best!.tokensPerSecond);
  t.ok(
    speeds.every((s, i) => i === 0 || s > speeds[i - 1]!),
    "more devices are faster",
  );
});

t.test("configurations that do not fit are excluded with their bytes; the picture shows the others", async (t) => {
  const link = { latency: 0, bandwidth: 1e12, per: "rank" } as const;
  const small = machineFile(t, link, 1.9e9);
  const file = path.join(temporaryFolder(t), "curve.svg");
  const { found, thrownOut } = await searched(t, small, "--svg", file);
  t.notOk(found.some(({ mesh }) => mesh.ep * mesh.tp === 1));
  t.match(thrownOut[0]!.why, /^weights alone are 2\.5 GiB a rank, of 1\.8 GiB/);
  t.match(
    readFileSync(file, "utf8"),
    /<svg .*>4096<.*all devices as one replica/s,
  );
  const text = await switchyard([
    ...["search", GRANITE, "--target", small, "--max-context", "256"],
  ]);
  t.match(
    text.out,
    /^rates {3}exact numerics: f32 arithmetic at 1000000 T multiply-adds\/s, without matrix/m,
  );
  const [, flags] = /^plan {4}([^,\n]*)/m.exec(text.out)!;
  const planned = await switchyard([
    ...["plan", GRANITE, "--target", small, ...flags!.split(" ")],
  ]);
  t.equal(planned.code, 0, `${flags}: ${planned.err}`);
  const [, count] = /--pages (\d+)x32/.exec(flags!)!;
  const ranks = Number(/ep=(\d+)/.exec(flags!)?.[1] ?? 1);
  t.match(
    planned.out,
    `, ${Number(count) * ranks} pages, 32 positions a page\n`,
    "states are pages",
  );
  const none = await switchyard([
    ...["search", GRANITE, "--target", machineFile(t, link, 1e9)],
  ]);
  t.equal(none.code, 3);
  t.match(none.out, "nothing fits");
});

t.test("a replica that fits without its states is excluded with both", async (t) => {
  const link = { latency: 0, bandwidth: 1e12, per: "rank" } as const;
  // Weights are 2.67 GB. Caches are 25 MB, for which only the second machine has memory.
  for (const [memory, fits] of [[2.68e9, false], [2.71e9, true]] as const) {
    const { found, thrownOut } = await searched(
      t,
      machineFile(t, link, memory),
    );
    const replicas = found.filter(({ mesh }) => mesh.ep * mesh.tp === 1);
    t.equal(replicas.length, fits ? 1 : 0);
    t.strictSame(
      thrownOut.map(({ why }) => why),
      fits ? [] : [
        "weights and states alone are 2.5 GiB a rank with a sequence each, of 2.5 GiB",
      ],
    );
  }
});

t.test("a search uses the given numerics, wire format and cache dtype", async (t) => {
  const link = { latency: 2e-5, bandwidth: 1e10, per: "rank" } as const;
  const machine = machineFile(t, link, 1.9e9);
  const words = [GRANITE, "--target", machine, "--max-context", "256"];
  const fast = ["--numerics", "fast", "--operands", "f16"];
  const halves = ["--wire", "bf16", "--kv-cache-dtype", "bf16"];
  const { out, err } = await switchyard([
    ...["search", ...words, ...fast, ...halves],
  ]);
  t.match(
    out,
    /^rates {3}fast numerics: .*, caches in bf16, exchanges in bf16\.$/m,
    err,
  );
  const [, flags] = /^plan {4}([^,\n]*)/m.exec(out)!;
  t.match(
    flags,
    "--numerics fast --wire bf16 --operands f16 --kv-cache-dtype bf16",
  );
  const planned = await switchyard([
    ...["plan", GRANITE, "--target", machine, ...flags!.split(" ")],
  ]);
  t.equal(planned.code, 0, `${flags}: ${planned.err}`);
  t.match(planned.out, /times assume .*, caches in bf16, exchanges in bf16/);
  const of = async (...more: readonly string[]) => {
    const { found } = await searched(t, machine, ...more);
    return found[0]!.tokensPerSecond;
  };
  const [exact, wired] = [await of(), await of("--wire", "bf16")];
  t.ok(wired > exact, `${wired} and ${exact} tokens/s`);
  const strategies = (numerics: "exact" | "fast") =>
    triedStrategies(numerics).map(({ dispatcher }) => dispatcher);
  t.notOk(strategies("exact").includes("allGather"));
  t.ok(strategies("fast").includes("allGather"));
  for (const flag of [["--wire", "bf16"], ["--kv-cache-dtype", "bf16"]]) {
    const { code, err } = await switchyard([
      ...["search", ...words, "--phase", "train", ...flag],
    ]);
    t.equal(code, 2);
    t.match(err, `Cannot use ${flag[0]} with --phase train`);
  }
});

t.test("experts are sliced if they are fewer than ranks, or if that is faster", async (t) => {
  // Only the latency of exchanges matters.
  const link = { latency: 1e-4, bandwidth: 1e12, per: "rank" } as const;
  const published = path.join(CONFIGS, "mixtral-8x7b.json");
  const config = {
    ...JSON.parse(readFileSync(published, "utf8")) as object,
    num_hidden_layers: 2,
    num_local_experts: 2,
    num_experts_per_tok: 1,
  };
  const folder = temporaryFolder(t);
  const file = path.join(folder, "config.json");
  writeFileSync(file, JSON.stringify(config));
  const [device] = Object.values(NODE.devices);
  const machine = path.join(folder, "machine.json");
  const limits = { maxBufferSize: 1e11, maxStorageBufferBindingSize: 1e11 };
  writeFileSync(
    machine,
    JSON.stringify({
      ...NODE,
      devices: { d: { ...device!, memory: 8e9, limits } },
      links: { sameHost: link },
    }),
  );
  const words = [
    ...["search", file, "--target", machine, "--max-context", "256"],
    ...["--objective", "latency"],
  ];
  const exact = await switchyard([...words, "--json"]);
  const meshes = (out: string) =>
    (JSON.parse(out) as Document).found.map(({ mesh }) => [mesh.ep, mesh.tp]);
  t.strictSame(
    meshes(exact.out).sort(),
    [[1, 1], [1, 2], [2, 1]],
    exact.err,
  );
  const { out } = await switchyard([...words, "--numerics", "fast", "--json"]);
  const { found } = JSON.parse(out) as Document;
  t.strictSame(
    meshes(out).sort(),
    [[1, 1], [1, 2], [1, 4], [2, 1], [2, 2]],
  );
  const one = found.find(({ mesh: { ep, tp } }) => ep * tp === 1);
  for (const { mesh, strategy, bytes } of found) {
    const { ep, tp } = mesh;
    if (ep * tp > 2) t.ok(strategy.sliceExperts, `ep=${ep},tp=${tp}`);
    if (ep * tp === 4) {
      t.ok(bytes < one!.bytes / 2, "less than half of one rank");
    }
  }
  const two = found.find(({ mesh: { ep, tp } }) => ep === 1 && tp === 2);
  t.ok(two!.strategy.sliceExperts, "without an exchange");
  const { out: text } = await switchyard([
    ...[...words, "--numerics", "fast", "--ranks", "4"],
    ...["--objective", "memory"],
  ]);
  const [, flags] = /^plan {4}([^,\n]*(,tp=\d+ [^,\n]*)?)/m.exec(text)!;
  t.match(flags, "--numerics fast --slice-experts");
  const planned = await switchyard([
    ...["plan", file, "--target", machine, ...flags!.split(" ")],
  ]);
  t.equal(planned.code, 0, `${flags}: ${planned.err}`);
});

t.test("a mesh that cannot shard the model is excluded with the axis", async (t) => {
  // Four heads, and eight devices on a host.
  const { code, out, err } = await switchyard([
    ...["search", path.resolve(CONFIGS, "../../../examples/demo-lm")],
    ...["--target", "8xh100", "--json"],
  ]);
  t.equal(code, 0, err);
  const { found, thrownOut } = JSON.parse(out) as Document;
  t.ok(found.length > 5);
  t.strictSame(thrownOut.map(({ why }) => why), [
    "Cannot shard axis 'head' over 'tp': its size, 4, is no multiple of 8",
  ]);
  // The embedding of 2,048 words is 512 KiB in bf16; two ranks that share it have half.
  const link = { latency: 0, bandwidth: 1e12, per: "rank" } as const;
  const limited = await switchyard([
    ...["search", path.resolve(CONFIGS, "../../../examples/demo-lm")],
    ...["--target", machineFile(t, link, 4e9), "--json"],
    ...["--limits", "maxBufferSize=500000"],
  ]);
  const document = JSON.parse(limited.out) as Document;
  t.equal(document.thrownOut.length, 2);
  for (const { why } of document.thrownOut) t.match(why, "needs maxBufferSize");
  t.strictSame(document.found.map(({ mesh }) => mesh), [{ ep: 1, tp: 2 }]);
});

t.test("a mesh with buffers that kernels cannot index is excluded", async (t) => {
  const file = path.join(temporaryFolder(t), "machine.json");
  const limits = { maxBufferSize: 1e13, maxStorageBufferBindingSize: 1e13 };
  const device = { ...NODE.devices["d"]!, memory: 6e12, limits };
  writeFileSync(file, JSON.stringify({ ...NODE, devices: { d: device } }));
  // Keys of 8 heads of 64 at 2^24 positions: kernels can index those of 2 heads.
  const { found, thrownOut } = await searched(
    t,
    file,
    ...["--max-context", `${2 ** 24}`],
  );
  t.strictSame(found.map(({ mesh }) => mesh), [{ ep: 1, tp: 4 }]);
  t.equal(thrownOut.length, 5);
  for (const { why } of thrownOut) {
    t.match(why, /kernels (index|do with) at most \d+$/);
  }
});

t.test("two threads find the same as one, even if one fails", async (t) => {
  const link = { latency: 1e-5, bandwidth: 1e11, per: "rank" } as const;
  const machine = machineFile(t, link, 4e9);
  const words = [
    ...["search", GRANITE, "--target", machine],
    ...["--max-context", "256", "--json"],
  ];
  const { out: alone } = await switchyard(words);
  const foundWith = async (helper: SearchHelper) => {
    let asked = 0;
    let given: unknown;
    const help: SearchHelper["help"] = (batch) => {
      asked++;
      return helper.help(batch);
    };
    const { out } = await withOutput((io) => main(words, io), {
      searchThread: () => ({
        begin: (start) => given = structuredClone(start.machine),
        help,
        close: () => {},
      }),
    });
    t.ok(asked > 0);
    t.strictSame(given, JSON.parse(readFileSync(machine, "utf8")));
    return out;
  };
  const task = await withOutput(async (io) => {
    const task = await searchTask(io, {
      model: GRANITE,
      flags: { target: machine, maxContext: 256 },
      machine: await findMachine(io, machine),
    });
    const known = await knownOf(task);
    const shared = new Set<string>();
    const help: SearchHelper["help"] = async (batch) => {
      const results = await helpSearch(task, { known, batch });
      for (const [i] of results) shared.add(batch.tasks[i]!.kind);
      return structuredClone(results);
    };
    t.equal(await foundWith({ help }), alone);
    t.ok(shared.has("mesh"));
    t.ok(shared.has("loads"), "steps of the crossover");
    return 0;
  });
  t.equal(task.code, 0);
  const help: SearchHelper["help"] = ({ taken }) => {
    taken.fill(1);
    return Promise.resolve([]);
  };
  t.equal(await foundWith({ help }), alone);
  const { stdout } = await promisify(execFile)(process.execPath, [
    path.resolve(CONFIGS, "../../../bin/switchyard.mjs"),
    ...words,
  ]);
  t.equal(stdout, alone);
});

t.test("a training step uses the ZeRO stage and recomputation that memory requires", async (t) => {
  const link = { latency: 2e-5, bandwidth: 1e11, per: "rank" } as const;
  const train = (memory: number, ...argv: readonly string[]) =>
    searched(t, machineFile(t, link, memory), "--phase", "train", ...argv);
  // AdamW stores 12 bytes per weight of 1.3 billion, besides 2: two ranks that share everything have half of it.
  const small = await train(14e9, "--objective", "memory");
  const [smallest, ...others] = small.found;
  t.ok(others.length > 0, "more than one mesh fits");
  t.ok(others.every(({ bytes }) => bytes >= smallest!.bytes), "smallest first");
  t.match(small.assumes, /^f32 arithmetic .* exchanges in f32$/);
  t.notMatch(small.assumes, "caches");
  for (const { bytes, limit, strategy } of small.found) {
    t.ok(bytes <= limit && strategy.recompute, "only recomputation fits");
  }
  const none = await switchyard([
    ...["search", GRANITE, "--phase", "train", "--max-context", "256"],
    ...["--target", machineFile(t, link, 8e9)],
  ]);
  t.equal(none.code, 3);
  t.match(
    none.out,
    /weights and optimizer state alone are .* with ZeRO-3 and recomputation, of 7\.5 GiB/,
  );
});

t.test("representative layers give the bytes of a training step", async (t) => {
  // A third of its layers, all of one kind.
  const config = {
    ...JSON.parse(readFileSync(GRANITE, "utf8")) as object,
    num_hidden_layers: 8,
  };
  const file = path.join(temporaryFolder(t), "config.json");
  writeFileSync(file, JSON.stringify(config));
  const configuration = configurationOf(config, file);
  const target = { kind: "configuration", configuration } as const;
  const mesh = { dp: 2, ep: 2 };
  const bounds = { maxTokens: 256, maxSequences: 4, maxContext: 64 };
  const options = {
    mesh,
    bounds,
    limits: {},
    recompute: true,
    zero: 1 as const,
  };
  const representative = await compileTrainingRepresentatives(target, {
    ...options,
    machine: undefined,
  });
  const complete = await planTraining(file, nodeFiles(), {
    ...options,
    dtype: "bf16",
    overLimits: true,
  });
  const [all] = planSummary(complete).ranks;
  const ratio = (of: "weights" | "state" | "total") =>
    representative.fullest.bytes[of] / all!.bytes[of];
  t.strictSame([ratio("weights"), ratio("state")], [1, 1]);
  t.ok(Math.abs(ratio("total") - 1) < 0.03, `total: ${ratio("total")}`);
  const seconds = (plan: Plan) =>
    simulate(plan, NODE, { tokens: 256, sequences: 4 }).seconds;
  const first = seconds(representative.plan);
  const grown = representative.grown.reduce(
    (sum, { plan, layers }) => sum + layers * (seconds(plan) - first),
    first,
  );
  t.ok(
    Math.abs(grown / seconds(complete) - 1) < 0.03,
    `seconds: ${grown / seconds(complete)}`,
  );
});

t.test("two-level exchanges with stages, context parallelism and training", (t) => {
  const size = { ranks: 8, host: 2, experts: 8 };
  const names = [
    ...replicaMeshes(size, { pp: 2 }),
    ...replicaMeshes(size, { cp: 2 }),
    ...trainingMeshes(size, { pp: 2 }),
  ].flatMap((mesh) => {
    const nodes = overNodes(mesh, size.host);
    return nodes ? meshName(nodes) : [];
  });
  t.strictSame([...new Set(names)], [
    "pp=2,node=2,ep=2",
    "pp=2,node=2,tp=2",
    "node=2,cp=2",
    "node=4,cp=2",
  ]);
  t.end();
});

t.test("meshes of a replica", (t) => {
  const names = (ranks: number, experts: number, slices = false) =>
    replicaMeshes({ ranks, host: 2, experts, slices })
      .map(({ ep, tp }) => [ep, tp]);
  t.strictSame(names(4, 8), [[1, 1], [2, 1], [4, 1], [1, 2], [2, 2]]);
  t.strictSame(names(6, 8).slice(-2), [[6, 1], [3, 2]], "all ranks");
  t.strictSame(names(8, 2), [[1, 1], [2, 1], [1, 2]], "one expert per rank");
  t.strictSame(names(8, 2, true), [[1, 1], [2, 1], [1, 2], [2, 2]], "a slice");
  t.end();
});
