// Ranks started by mpirun without `launch`: they compute the bytes of a shared device, or report why they cannot run.
// needs: cpu, mpi
// rotates with: runtime/mpi/, cli/launch/
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import t from "tap";
import { launcherArguments } from "../../cli/launch/mpi_launcher.ts";
import { DEADLINE_MS } from "../../engine/mod.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "../helpers/cli.ts";
import { whyNotNative } from "../../runtime/native/mod.ts";
import {
  BIN,
  LAUNCHERS,
  launchersInTurn,
  processesLeft,
  processesWith,
  skipWithoutKoffi,
  start,
  withoutMpi,
} from "../helpers/mpi.ts";
import { repeatWith, SEED } from "../helpers/seed.ts";
import { repositoryFile } from "../helpers/sessions.ts";

const scratch = temporaryFolder(t);
function file(name: string): string {
  return path.join(scratch, name);
}

await writeRaw(file("ids"), {
  input_ids: integers([2, 4], [5, 6, 7, 8, 9, 4, 3, 2]),
});
const RUN = [
  ...["run", checkpointFolder("mixtral-6e"), "--inputs", file("ids")],
  ...["--mesh", "ep=2", "--wire", "fp8", "--outputs"],
];
const absent = await whyNotNative();
if (absent !== undefined) {
  t.comment(`No rank is on the native CPU device: ${absent}`);
}
/** Compiled C computes the bits of WebAssembly. */
const NATIVE = absent === undefined ? "native" : "cpu";
const GENERATE = [
  ...["generate", checkpointFolder("demo-lm"), "--prompt", "Once"],
  ...["--max-new-tokens", "3", "--adapter", "cpu", "--devices", "mpi"],
];

/** Runs the package in the repository, without npm's check for updates. */
const NPX = {
  cwd: repositoryFile(""),
  env: { ...process.env, npm_config_update_notifier: "false" },
};

for (
  const { name, command, family, rankVariable, skip } of launchersInTurn()
) {
  const mpirun = (ranks: number) =>
    launcherArguments(family, { ranks, root: process.getuid?.() === 0 });
  const npx = (ranks: number, flags: readonly string[], argv: string[]) =>
    start(command!, [
      ...[...flags, ...mpirun(ranks), "npx", "switchyard", ...argv],
    ], NPX).ended;

  t.test(`${name}: mpirun -n 2 npx switchyard run --devices mpi`, {
    skip,
  }, async (t) => {
    const shared = await switchyard([
      ...[...RUN, file("shared"), "--adapter", "cpu"],
    ]);
    t.equal(shared.code, 0);
    const { code, out, err } = await npx(
      2,
      family === "mpich" ? ["-pmi-port"] : [],
      [...RUN, file("apart"), "--devices", "mpi", "--adapter", NATIVE],
    );
    t.strictSame([code, withoutMpi(err)], [0, ""]);
    t.match(out, /^Wrote .*apart\n(.*\n)+rank 1: \d+ bytes of memory, .*\n$/);
    t.equal(out.match(/^Wrote /gm)!.length, 1, "one rank prints");
    t.ok(readFileSync(file("apart")).equals(readFileSync(file("shared"))));
  });

  // Messages and exit codes of errors do not depend on the MPI; test/mpi/faults.test.ts tests both MPIs with 'launch'.
  if (family === LAUNCHERS.find(({ skip }) => !skip)?.family) {
    t.test(`${name}: ranks with different plans, without launch`, async (t) => {
      // Each rank has another context length.
      const context = `$((64 + 32 * ${rankVariable}))`;
      const { code, err } = await start(command!, [
        ...mpirun(2),
        ...["sh", "-c", `exec "$@" --max-context ${context}`, "sh"],
        ...[process.execPath, BIN, ...GENERATE],
      ]).ended;
      t.equal(code, 3);
      t.match(
        err,
        /rank 0 on (\S+): Cannot run the plan: rank 1 on \1 has another plan than rank 0 on \1\. /,
      );
    });
  }

  t.test(`${name}: a launcher of another MPI than the library`, {
    skip,
  }, async (t) => {
    // One process with the variables of another MPI's launcher.
    const reported = family === "openMpi"
      ? { OMPI_COMM_WORLD_SIZE: "2", OMPI_MCA_btl: "self" }
      : { PMI_SIZE: "2", PMI_RANK: "0" };
    const { code, err } = await start(process.execPath, [BIN, ...GENERATE], {
      env: { ...process.env, ...reported },
    }).ended;
    t.equal(code, 3);
    t.match(
      err,
      /Cannot join the job: its launcher started 2 processes, and the MPI library, '.*', knows of 1\. Use the mpirun of that library\n$/,
    );
  });

  t.test(`${name}: a rank stopped by a signal is reported without launch`, {
    skip: skip || process.platform !== "linux" && "there is no /proc",
  }, async (t) => {
    const prompt = `Once ${crypto.randomUUID()}`;
    const { child, ended } = start(command!, [
      ...[...mpirun(2), process.execPath, BIN, ...GENERATE],
      ...["--prompt", prompt, "--deadline", "2"],
      // Enough tokens that the rank still runs when it is stopped.
      ...["--max-new-tokens", "400"],
    ]);
    // Waits for the watcher of the rank, which starts before MPI.
    let watched: number | undefined;
    while (watched === undefined && child.exitCode === null) {
      await sleep(2);
      watched = processesWith(prompt, `${rankVariable}=1`)
        .find((pid) => processesWith(String(pid)).length > 0);
    }
    const [ms = 0] = fc.sample(fc.nat(200), { numRuns: 1, seed: SEED });
    await sleep(ms);
    t.ok(watched !== undefined && process.kill(watched, "SIGSTOP"));
    const { code, err } = await ended;
    t.not(code, 0, repeatWith());
    t.match(
      err,
      `Cannot finish: a signal stopped rank 1 on ${hostname()}, and nobody continued it. Start the command again\n`,
    );
    t.strictSame(await processesLeft(prompt), []);
  });

  if (family === "mpich") {
    t.test(`${name}: npx without -pmi-port`, { skip }, async (t) => {
      const { code, err } = await npx(2, [], GENERATE);
      t.equal(code, 3);
      t.match(
        err,
        "Cannot join the job: the socket of MPICH's launcher is not passed through 'npx'. Give mpirun the flag -pmi-port, or start node_modules/.bin/switchyard without npx\n",
      );
    });
  }
}

t.test("stopped ranks have the deadline of steps", async (t) => {
  const { href } = new URL("../../bin/watch.mjs", import.meta.url);
  const { DEADLINE_SECONDS } = await import(href);
  t.equal(1000 * DEADLINE_SECONDS, DEADLINE_MS);
});

t.test("a process without an MPI library names packages to install", {
  skip: skipWithoutKoffi,
}, async (t) => {
  const none = fileURLToPath(
    new URL("../helpers/no_library.mjs", import.meta.url),
  );
  const { code, out, err } = await start(process.execPath, [
    ...["--import", none, BIN, ...GENERATE],
  ]).ended;
  t.strictSame([code, out], [3, ""]);
  t.match(
    err,
    /^Cannot use MPI: there is no MPI library \(\S+, .*\)\. Install one, such as the Debian package 'openmpi-bin' or 'mpich', and start the command with its mpirun\n$/,
  );
});
