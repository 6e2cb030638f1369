// Ranks as processes of MPI jobs: they compute the bytes of ranks on one shared device, and report failures.
// needs: cpu, mpi
import { readFileSync, rmSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import t, { type Test } from "tap";
import { launcherArguments } from "../../cli/launch/mpi_launcher.ts";
import {
  loadTarget,
  needOf,
  planTarget,
  readBatch,
  readTensors,
  type Trace,
  VERSION,
} from "../../engine/mod.ts";
import { stringifyPlan } from "../../spec/mod.ts";
import { checkpointFolder, files, meshOf } from "../helpers/checkpoints.ts";
import { startedProgram } from "../helpers/compiled.ts";
import {
  floats,
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "../helpers/cli.ts";
import {
  LAUNCHERS,
  launchersInTurn,
  skipWithoutKoffi,
  start,
  startWith,
  withoutMpi,
} from "../helpers/mpi.ts";
import type { RankCase } from "../helpers/run_rank.ts";
import { repositoryFile } from "../helpers/sessions.ts";
import { inTurn } from "../helpers/seed.ts";

const MIXTRAL = checkpointFolder("mixtral-6e");
const DEEPSEEK = checkpointFolder("deepseekv3-16e");
const GPT_OSS = checkpointFolder("gptoss-8e");
const DEMO = checkpointFolder("demo-lm");
const LAYER = repositoryFile("examples/layer.ts");
const WHOLE = repositoryFile("test/fixtures/mpi/whole.ts");

/** A model with its operands and meshes. */
interface Case {
  readonly name: string;
  readonly model: string;
  readonly inputs: string;
  readonly weights?: string;
  /** Meshes with one job each, started by `launch`. */
  readonly launched: readonly string[];
  /** Meshes that run with other cases in one job per rank count, from saved plans. */
  readonly together: readonly string[];
}

const scratch = temporaryFolder(t);
function file(name: string): string {
  return path.join(scratch, name);
}

await writeRaw(file("layer.in"), { x: floats([24, 512], 1) });
await writeRaw(file("layer.weights"), {
  router: floats([8, 512], 0.1),
  ...Object.fromEntries(
    Array.from({ length: 8 }, (_, e) => [
      [`experts.${e}.gate`, floats([1024, 512], 0.05 + e / 1000)],
      [`experts.${e}.up`, floats([1024, 512], 0.05 - e / 1000)],
      [`experts.${e}.down`, floats([512, 1024], 0.04 + e / 1000)],
    ]).flat(),
  ),
});
await writeRaw(file("ids"), {
  input_ids: integers(
    [3, 5],
    [5, 6, 7, 8, 9, 4, 3, 2, 0, 0, 11, 12, 13, 14, 0],
  ),
  attention_mask: integers(
    [3, 5],
    [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0],
  ),
});

await writeRaw(file("long"), {
  input_ids: integers([1, 250], Array.from({ length: 250 }, (_, i) => i % 90)),
});

await writeRaw(file("whole.in"), {
  x: floats([11, 8], 1),
  router: floats([4, 8], 1),
  group: integers([11], [0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 2]),
});

const CASES: readonly Case[] = [
  {
    name: "a long context",
    model: GPT_OSS,
    inputs: file("long"),
    launched: [],
    together: ["cp=2", "cp=4", "ep=2,cp=2"],
  },
  {
    name: "the layer",
    model: LAYER,
    inputs: file("layer.in"),
    weights: file("layer.weights"),
    launched: ["ep=4"],
    together: ["ep=2", "dp=2,ep=2", "dp=2,ep=4"],
  },
  {
    name: "the bundled checkpoint",
    model: DEMO,
    inputs: file("ids"),
    launched: [],
    together: ["ep=2", "tp=2,ep=2"],
  },
  {
    name: "a DeepSeek-V3",
    model: DEEPSEEK,
    inputs: file("ids"),
    launched: [],
    together: ["ep=2", "ep=4"],
  },
  {
    name: "a gpt-oss",
    model: GPT_OSS,
    inputs: file("ids"),
    launched: [],
    together: ["dp=2", "ep=4"],
  },
  {
    name: "six experts",
    model: MIXTRAL,
    inputs: file("ids"),
    launched: [],
    together: ["ep=4"],
  },
  {
    name: "ops over all tokens",
    model: WHOLE,
    inputs: file("whole.in"),
    launched: ["ep=3"],
    together: [],
  },
];

/** Arguments of the command that runs a case. */
function runOf(
  { model, inputs, weights }: Case,
  mesh: string,
): readonly string[] {
  return [
    ...["run", model, "--inputs", inputs, "--mesh", mesh],
    ...["--adapter", "cpu", "--check"],
    ...weights === undefined ? [] : ["--weights", weights],
  ];
}

const GENERATE = [
  ...["generate", DEMO, "--prompt", "Once upon a time"],
  ...["--prompt", "The king said", "--max-new-tokens", "10"],
  ...["--adapter", "cpu"],
];

/** Commands that fail on every rank: missing file, unknown flag, wrong mesh. */
const ERRORS: readonly {
  readonly argv: readonly string[];
  readonly code: number;
  readonly state: string;
}[] = [
  {
    argv: [
      ...["run", MIXTRAL, "--inputs", file("none"), "--outputs", file("x")],
    ],
    code: 1,
    state: "read '.*none': there is no such file or folder",
  },
  {
    argv: [...GENERATE, "--none"],
    code: 2,
    state: "run the command: unknown option '--none'",
  },
  {
    argv: [...GENERATE, "--mesh", "ep=4"],
    code: 2,
    state: "run a mesh of 4 ranks on 2 processes",
  },
];

interface Ranks {
  readonly ranks: readonly {
    readonly rank: number;
    readonly [figure: string]: unknown;
  }[];
}

/** Returns the predicted and actual figures of a report. */
function figures(value: unknown): [predicted: number[], actual: number[]] {
  const all: [number[], number[]] = [[], []];
  JSON.stringify(value, (key, inner: unknown) => {
    if (key === "predicted") all[0].push(inner as number);
    if (key === "actual") all[1].push(inner as number);
    return inner;
  });
  return all;
}

/** Fails unless a trace has events of all ranks, and equal exchanges on each. */
function hasEveryRank(t: Test, trace: string, ranks: number): void {
  const { traceEvents } = JSON.parse(readFileSync(trace, "utf8")) as Trace;
  const of = (pid: number, cat: string) =>
    traceEvents.filter((event) => event.pid === pid && event.cat === cat)
      .map(({ name }) => name);
  const first = of(0, "allToAll");
  t.ok(first.length > 0);
  for (let rank = 0; rank < ranks; rank++) {
    t.match(
      traceEvents.find(({ pid, name }) =>
        pid === rank && name === "process_name"
      )?.args,
      { name: new RegExp(`^rank ${rank} on \\S+$`) },
    );
    t.ok(of(rank, "launch").length > 0);
    t.strictSame(of(rank, "allToAll"), first);
  }
}

/** Returns the number of ranks of a mesh. */
function ranksOf(mesh: string): number {
  return [...mesh.matchAll(/\d+/g)].reduce((n, [size]) => n * Number(size), 1);
}

/** Outputs of a case on a shared device, and its plan. Computed once for both MPIs. */
interface Reference {
  readonly wanted: Buffer;
  readonly ranks: RankCase;
}

const references = new Map<string, Promise<Reference>>();

/** Compiles a case and runs all ranks on one device. */
function onOneDevice(one: Case, mesh: string): Promise<Reference> {
  const key = `${one.name} on ${mesh}`;
  const found = references.get(key) ?? runPlan(one, mesh, references.size);
  references.set(key, found);
  return found;
}

async function runPlan(one: Case, mesh: string, i: number): Promise<Reference> {
  const { inputs, weights = path.join(one.model, "model.safetensors") } = one;
  const target = await loadTarget(one.model, files);
  const plan = await planTarget(target, files, {
    mesh: meshOf(mesh),
    check: true,
    weights,
    ...target.kind === "checkpoint"
      ? { need: needOf(readBatch(await readTensors(inputs, files))) }
      : {},
  });
  const ranks = {
    plan: file(`plan.${i}.json`),
    weights,
    inputs,
    outputs: file(`mpi.${i}`),
  };
  await writeFile(ranks.plan, stringifyPlan(plan));
  const wanted = await writeShared([
    ...["run", ranks.plan, "--weights", weights, "--inputs", inputs],
    ...["--adapter", "cpu", "--check", "--allow-kernels"],
  ]);
  return { wanted, ranks };
}

async function writeShared(argv: readonly string[]): Promise<Buffer> {
  const { code, err } = await switchyard([
    ...[...argv, "--outputs", file("shared")],
  ]);
  if (code !== 0) throw new Error(`the run on a shared device failed: ${err}`);
  return readFileSync(file("shared"));
}

for (const launcher of LAUNCHERS) {
  const { name, skip, command } = launcher;
  const launch = (n: number, argv: readonly string[]) =>
    startWith(launcher, scratch, ["launch", "-n", String(n), "--", ...argv]);

  /** One of `every` cases for one MPI, none for the other, in rotation. */
  const rotated = <T>(cases: readonly T[], every: number) =>
    launchersInTurn().includes(launcher) ? inTurn(cases, every) : [];

  const launched = CASES.filter(({ launched }) => launched.length > 0);
  for (const one of rotated(launched, 2)) {
    for (const mesh of one.launched) {
      t.test(
        `${name}: ${one.name} on ${mesh} computes the bytes of a shared device`,
        {
          skip,
        },
        async (t) => {
          const ranks = ranksOf(mesh);
          const run = runOf(one, mesh);
          const wanted = await writeShared(run);
          // Removes results of earlier cases.
          for (const name of ["mpi", "trace"]) {
            rmSync(file(name), { force: true });
          }
          const { code, out, err } = await launch(ranks, [
            ...[...run, "--json", "--outputs", file("mpi")],
            ...["--trace", file("trace")],
          ]).ended;
          t.strictSame([code, withoutMpi(err)], [0, ""]);
          t.ok(readFileSync(file("mpi")).equals(wanted), "the same bytes");
          const report = JSON.parse(out) as Ranks;
          t.strictSame(
            report.ranks.map(({ rank }) => rank),
            Array.from({ length: ranks }, (_, rank) => rank),
          );
          const [predicted, actual] = figures(report);
          t.ok(actual.length >= 5 * ranks);
          t.strictSame(actual, predicted, "memory and bytes as predicted");
          hasEveryRank(t, file("trace"), ranks);
        },
      );
    }
  }

  // test/mpi/communicator.test.ts rotates groups of eight ranks over both MPIs.
  for (const ranks of [2, 4, 8]) {
    const cases = CASES.flatMap((one) =>
      one.together.filter((mesh) => ranksOf(mesh) === ranks)
        .map((mesh) => ({ one, mesh }))
    );
    const some = rotated(cases, 3);
    if (some.length === 0) continue;
    t.test(
      `${name}: models on ${ranks} ranks compute the bytes of a shared device`,
      {
        skip,
      },
      async (t) => {
        const list: Reference[] = [];
        for (const { one, mesh } of some) {
          list.push(await onOneDevice(one, mesh));
        }
        const ofRanks = list.map((one) => one.ranks);
        for (const { outputs } of ofRanks) rmSync(outputs, { force: true });
        await writeFile(file("cases.json"), JSON.stringify(ofRanks));
        const { code, err } = await start(command!, [
          ...launcherArguments(launcher.family, {
            ranks,
            root: process.getuid?.() === 0,
          }),
          ...[process.execPath, ...startedProgram("test/helpers/run_rank.ts")],
          file("cases.json"),
        ]).ended;
        t.strictSame([code, withoutMpi(err)], [0, ""]);
        for (const [i, { one, mesh }] of some.entries()) {
          const { wanted, ranks } = list[i]!;
          const found = readFileSync(ranks.outputs);
          t.ok(found.equals(wanted), `${one.name} on ${mesh}`);
        }
      },
    );
  }

  for (const mesh of rotated(["ep=2", "pp=2"], 2)) {
    t.test(
      `${name}: generate on ${mesh} prints the output of a shared device`,
      {
        skip,
      },
      async (t) => {
        const generate = [...GENERATE, "--mesh", mesh];
        const shared = await switchyard(generate);
        const { code, out, err } = await launch(2, generate).ended;
        t.strictSame([code, withoutMpi(err), out], [0, "", shared.out]);
      },
    );
  }

  // Messages and exit codes of errors do not depend on the MPI.
  if (launchersInTurn().includes(launcher)) {
    t.test(
      `${name}: an error of all ranks is printed once, with its exit code`,
      {
        skip,
      },
      async (t) => {
        for (const { argv, code, state } of inTurn(ERRORS, ERRORS.length)) {
          const ended = await launch(2, argv).ended;
          t.equal(ended.code, code);
          t.match(
            ended.err,
            new RegExp(`^rank [01] on \\S+: Cannot ${state}\\. .*\\n$`),
          );
        }
      },
    );
  }
}

t.test("ranks compare the version of the package", (t) => {
  const { version } = JSON.parse(
    readFileSync(repositoryFile("package.json"), "utf8"),
  ) as { version: string };
  t.equal(VERSION, version);
  t.end();
});

t.test("launch rejects commands that it cannot start", async (t) => {
  const launch = async (...argv: string[]) => {
    const { code, err } = await switchyard(["launch", ...argv]);
    return [code, err];
  };
  t.strictSame(await launch("-n", "2", "--", "check", "m"), [
    2,
    "Cannot launch 'check': it has no ranks. Give 'run', 'generate', 'serve', 'train' or 'devices' after --\n",
  ]);
  t.strictSame(await launch("-n", "2", "--", "devices"), [
    2,
    "Cannot launch 'devices' without --all: the list of adapters needs no ranks. Add --all to measure them\n",
  ]);
  t.strictSame(
    await launch("-n", "2", "--", "run", "m", "--devices", "shared"),
    [
      2,
      "Cannot launch ranks with --devices shared: they are processes. Leave it out\n",
    ],
  );
  await writeFile(file("hosts"), "near slots=2\nfar\n");
  t.strictSame(
    await launch("-n", "4", "--hosts", file("hosts"), "--", "run"),
    [
      1,
      `Cannot start 4 ranks: the hosts of '${
        file("hosts")
      }' have 3 slots. Add hosts, or 'slots=N' after a name\n`,
    ],
  );
});

t.test("launch without mpirun names packages to install", {
  skip: skipWithoutKoffi,
}, async (t) => {
  const { code, err } = await startWith(
    { command: undefined },
    file("empty"),
    ["launch", "-n", "2", "--", ...GENERATE],
  ).ended;
  t.strictSame([code, err], [
    3,
    "Cannot launch ranks: there is no 'mpirun' on the path. Install Open MPI or MPICH, such as the Debian package 'openmpi-bin' or 'mpich'\n",
  ]);
});
