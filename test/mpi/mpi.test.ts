// Ranks as processes of real MPI jobs: the bytes of ranks on one shared device, and what happens when a rank fails.
import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { launcherArguments } from "../../cli/mpi_launcher.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import {
  integers,
  type RawTensor,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "../helpers/cli.ts";
import {
  BIN,
  LAUNCHERS,
  processesWith,
  start,
  startWith,
} from "../helpers/mpi.ts";
import { repositoryFile } from "../helpers/sessions.ts";

const MIXTRAL = checkpointFolder("mixtral-6e");
const DEMO = checkpointFolder("demo-lm");
const LAYER = repositoryFile("examples/layer.ts");
const WHOLE = repositoryFile("test/fixtures/mpi/whole.ts");

/** Made-up numbers from -scale to scale. */
function floats(shape: number[], scale: number): RawTensor {
  let state = shape.length;
  const data = Float32Array.from(
    { length: shape.reduce((product, n) => product * n, 1) },
    () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (state / 2 ** 31 - 1) * scale;
    },
  );
  return { dtype: "F32", shape, data: new Uint8Array(data.buffer) };
}

/** What is run: arguments without devices, and how many ranks. */
interface Case {
  readonly name: string;
  readonly argv: readonly string[];
  readonly ranks: number;
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

await writeRaw(file("whole.in"), {
  x: floats([11, 8], 1),
  router: floats([4, 8], 1),
  group: integers([11], [0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 2]),
});

const CASES: readonly Case[] = [
  {
    name: "what looks at all tokens on three ranks",
    argv: [
      ...["run", WHOLE, "--inputs", file("whole.in"), "--mesh", "ep=3"],
    ],
    ranks: 3,
  },
  {
    name: "the layer on four ranks",
    argv: [
      ...["run", LAYER, "--inputs", file("layer.in")],
      ...["--weights", file("layer.weights"), "--mesh", "ep=4"],
    ],
    ranks: 4,
  },
  {
    name: "six experts on four ranks",
    argv: ["run", MIXTRAL, "--inputs", file("ids"), "--mesh", "ep=4"],
    ranks: 4,
  },
  {
    name: "the bundled checkpoint on two groups of two ranks",
    argv: ["run", DEMO, "--inputs", file("ids"), "--mesh", "dp=2,ep=2"],
    ranks: 4,
  },
];

const GENERATE = [
  ...["generate", DEMO, "--prompt", "Once upon a time"],
  ...["--prompt", "The king said", "--max-new-tokens", "10"],
  ...["--adapter", "cpu"],
];

interface Ranks {
  readonly ranks: readonly {
    readonly rank: number;
    readonly [figure: string]: unknown;
  }[];
}

/** The predicted and the actual figures in a part of a report. */
function figures(value: unknown): [predicted: number[], actual: number[]] {
  const all: [number[], number[]] = [[], []];
  JSON.stringify(value, (key, inner: unknown) => {
    if (key === "predicted") all[0].push(inner as number);
    if (key === "actual") all[1].push(inner as number);
    return inner;
  });
  return all;
}

const known = new Map<string, Buffer>();

/** What a case writes with all ranks on one device. */
async function sharedBytes(
  name: string,
  argv: readonly string[],
): Promise<Buffer> {
  const bytes = known.get(name);
  if (bytes) return bytes;
  const { code, err } = await switchyard([
    ...[...argv, "--outputs", file("shared")],
  ]);
  if (code !== 0) throw new Error(`the run on a shared device failed: ${err}`);
  known.set(name, readFileSync(file("shared")));
  return known.get(name)!;
}

for (const launcher of LAUNCHERS) {
  const { name, skip, command } = launcher;
  const launch = (n: number, argv: readonly string[]) =>
    startWith(launcher, scratch, ["launch", "-n", String(n), "--", ...argv]);

  for (const { name: what, argv, ranks } of CASES) {
    t.test(`${name}: ${what} gives the bytes of a shared device`, {
      skip,
    }, async (t) => {
      const run = [...argv, "--adapter", "cpu", "--check"];
      const wanted = await sharedBytes(what, run);
      const { code, out, err } = await launch(ranks, [
        ...[...run, "--json", "--outputs", file("mpi")],
      ]).ended;
      t.strictSame([code, err], [0, ""]);
      t.ok(readFileSync(file("mpi")).equals(wanted), "the same bytes");
      const report = JSON.parse(out) as Ranks;
      t.strictSame(
        report.ranks.map(({ rank }) => rank),
        Array.from({ length: ranks }, (_, rank) => rank),
      );
      const [predicted, actual] = figures(report);
      t.equal(actual.length, 6 * ranks);
      t.strictSame(actual, predicted, "memory and bytes as predicted");
    });
  }

  t.test(`${name}: generate prints what a shared device gives, once`, {
    skip,
  }, async (t) => {
    const shared = await switchyard([...GENERATE, "--mesh", "ep=2"]);
    const { code, out, err } = await launch(2, GENERATE).ended;
    t.strictSame([code, err, out], [0, "", shared.out]);
  });

  t.test(`${name}: a rank that is killed ends the job, by name`, {
    skip: skip ||
      (process.platform === "linux" ? false : "there is no /proc"),
  }, async (t) => {
    const seed = String(1_000_000 + process.pid);
    const { ended, printed } = launch(2, [
      ...["generate", DEMO, "--prompt", "Once", "--max-new-tokens", "500"],
      ...["--adapter", "cpu", "--max-context", "510", "--seed", seed],
      ...["--temperature", "1"],
    ]);
    await printed;
    const [pid] = processesWith(seed, `${launcher.rankVariable}=1`);
    const killed = performance.now();
    process.kill(pid!, "SIGKILL");
    const { code, err } = await ended;
    t.ok(performance.now() - killed < 10_000, "within 10 s");
    t.equal(code, 3);
    const named = "rank 1 on \\S+ was killed by signal 9";
    // MPICH's mpirun sometimes ends with code 0 and without a word.
    const silent =
      "the ranks ended without a result \\(exit code 0 of mpirun\\)";
    const what = name === "MPICH" ? `(${named}|${silent})` : named;
    t.match(err, new RegExp(`^Cannot finish: ${what}\\. `));
    t.strictSame(processesWith(seed), [], "nothing is left running");
  });

  t.test(`${name}: a wrong file or mesh is said once, with its exit code`, {
    skip,
  }, async (t) => {
    const missing = await launch(2, [
      ...["run", MIXTRAL, "--inputs", file("none"), "--outputs", file("x")],
    ]).ended;
    t.equal(missing.code, 1);
    t.match(
      missing.err,
      /^rank 0 on \S+: Cannot read '.*none': there is no such file or folder\. Check the path\n$/,
    );
    const mesh = await launch(2, [...GENERATE, "--mesh", "ep=4"]).ended;
    t.equal(mesh.code, 2);
    t.match(
      mesh.err,
      /^rank 0 on \S+: Cannot run a mesh of 4 ranks on 2 processes\. .*\n$/,
    );
  });

  t.test(`${name}: ranks with different plans do not start`, {
    skip,
  }, async (t) => {
    // Each rank asks for another length.
    const context = `$((64 + 32 * ${launcher.rankVariable}))`;
    const { code, err } = await start(command!, [
      ...launcherArguments(launcher.family, {
        ranks: 2,
        root: process.getuid?.() === 0,
      }),
      ...["sh", "-c", `exec "$@" --max-context ${context}`, "sh"],
      ...[process.execPath, BIN, ...GENERATE, "--devices", "mpi"],
    ]).ended;
    t.equal(code, 3);
    t.match(err, /rank 0 on \S+: Cannot run the plan: rank 1 has another plan/);
  });
}

t.test("launch refuses what it cannot start", async (t) => {
  const launch = async (...argv: string[]) => {
    const { code, err } = await switchyard(["launch", ...argv]);
    return [code, err];
  };
  t.strictSame(await launch("-n", "2", "--", "check", "m"), [
    2,
    "Cannot launch 'check': it has no ranks. Give 'run', 'generate' or 'devices' behind --\n",
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
  const trace = await switchyard(
    `run ${MIXTRAL} --inputs a --outputs b --devices mpi --trace c`.split(" "),
  );
  t.equal(trace.code, 2);
});

t.test("launch says what to install where there is no mpirun", {
  skip: LAUNCHERS.some(({ skip }) => /koffi/.test(String(skip)))
    ? "the optional package 'koffi' is not installed"
    : false,
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
