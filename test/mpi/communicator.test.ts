// Communicator between processes: contents, groups, long messages, and errors of ranks out of step.
// needs: cpu, gpu, mpi
// rotates with: runtime/mpi/, runtime/exchange/communicator.ts
import { readdirSync } from "node:fs";
import { hostname } from "node:os";
import process from "node:process";
import t from "tap";
import { launcherArguments } from "../../cli/launch/mpi_launcher.ts";
import { layOut, unitOf } from "../../runtime/mpi/blocks.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import { startedProgram } from "../helpers/compiled.ts";
import {
  BIN,
  LAUNCHERS,
  launchersInTurn,
  skipWithoutMpi,
  start,
} from "../helpers/mpi.ts";
import { skipWithoutGpu } from "../helpers/needs.ts";
import { repeatWith, SEED } from "../helpers/seed.ts";

t.test("layOut() returns one address with offsets", (t) => {
  const memory = new Uint8Array(100);
  const blocks = [
    memory.subarray(40, 50),
    memory.subarray(0, 0),
    memory.subarray(20, 28),
  ];
  const { data, lengths, offsets } = layOut(blocks);
  t.strictSame([lengths, offsets], [[10, 0, 8], [20, 0, 0]]);
  t.equal(data.byteOffset, 20);
  t.equal(data.length, 30);
  t.throws(() => layOut([memory.subarray(90), new Uint8Array(95)]));
  t.end();
});

t.test("unitOf() keeps counts below the maximum", (t) => {
  t.equal(unitOf([5], [7], 10), 1);
  t.equal(unitOf([16, 8], [40], 10), 4);
  t.equal(unitOf([3 * 2 ** 30], [0], 2 ** 31 - 1), 2);
  t.throws(() => unitOf([16], [41], 10), {
    message:
      "Cannot exchange 41 bytes: MPI counts to 10, and 41 bytes are no multiple of 8. Use more ranks, or smaller bounds",
  });
  t.end();
});

for (const { name, command, family, skip } of LAUNCHERS) {
  const job = async (
    ranks: number,
    ...jobs: readonly string[]
  ): Promise<unknown[]> => {
    const root = process.getuid?.() === 0;
    const { code, out, err } = await start(command!, [
      ...launcherArguments(family, { ranks, root }),
      ...[
        process.execPath,
        ...startedProgram("test/helpers/exchange_rank.ts"),
        jobs.join(),
        String(SEED),
      ],
    ]).ended;
    if (code === 0) return JSON.parse(out) as unknown[];
    throw new Error(`${jobs}: exit code ${code}: ${err}\n${repeatWith()}`);
  };

  if (launchersInTurn().some((launcher) => launcher.family === family)) {
    t.test(`${name}: groups over dp, ep and tp, in all orders`, {
      skip,
    }, async (t) => {
      t.strictSame(await job(8, "groups"), ["right"]);
    });
  }

  t.test(`${name}: long messages use larger units`, {
    skip,
  }, async (t) => {
    t.match(await job(3, "long"), [/41 bytes are no multiple of 2\. /]);
  });

  t.test(`${name}: ragged exchanges and ranks out of step`, {
    skip,
  }, async (t) => {
    if (skipWithoutGpu) {
      t.comment(`No mapped memory of a GPU: ${skipWithoutGpu}`);
    }
    const exchanges = ["ragged", ...skipWithoutGpu ? [] : ["mapped"]];
    const results = await job(2, ...exchanges, "failures");
    const failures = results.pop();
    t.strictSame(results, exchanges.map(() => "right"));
    const far = `rank 1 on ${hostname()}`;
    t.strictSame(failures, {
      other:
        `Cannot continue with step 'a': ${far} is out of step, it is in step 'b'. Check that every rank runs the same command on the same files`,
      sizes:
        `Cannot continue with step 'c': ${far} is out of step, it exchanges other sizes. Check that every rank runs the same command on the same files`,
      late:
        `Cannot continue with step 'd': ${far} did not join within 1 s. Look for a rank that is stuck, and check that every rank runs the same command`,
      alive: true,
    });
  });
}

t.test("a process without a launcher leaves no shared memory", {
  skip: skipWithoutMpi,
}, async (t) => {
  // Open MPI's file names for a job without a launcher.
  const segments = () =>
    readdirSync("/dev/shm").filter((name) =>
      /^sm_segment.*0000\.\d+$/.test(name)
    );
  const before = segments();
  const { code, out } = await start(process.execPath, [
    ...[BIN, "generate", checkpointFolder("demo-lm"), "--tokens", "1"],
    ...["--max-new-tokens", "1", "--adapter", "cpu", "--devices", "mpi"],
  ]).ended;
  t.equal(code, 0);
  t.not(out, "");
  t.strictSame(segments(), before);
});
