/**
 * Ranks stopped by a signal are reported at any moment: at start, load, step, save or end.
 * `STOPS=20 npm test -- mpi/stops` stops 20 ranks on each MPI.
 */
// needs: cpu, mpi
// rotates with: runtime/mpi/, cli/launch/, bin/watch.mjs

import process from "node:process";
import fc from "fast-check";
import t from "tap";
import { temporaryFolder } from "../helpers/cli.ts";
import { LAUNCHERS } from "../helpers/mpi.ts";
import { repeatWith, SEED } from "../helpers/seed.ts";
import { type Moment, MOMENTS, type Stop, stopRank } from "../helpers/stops.ts";
import { tinyModel } from "../helpers/tiny_training.ts";

/** Seconds that a rank may be stopped. */
const DEADLINE = 8;

const count = Number(process.env["STOPS"] ?? 2);
const moments = Object.keys(MOMENTS) as Moment[];
const scratch = temporaryFolder(t);
const model = await tinyModel(t);

// Tests mostly wait.
t.jobs = 4;

for (const launcher of LAUNCHERS) {
  // Moments rotate, from a random first one.
  const [first = 0] = fc.sample(fc.nat(), { numRuns: 1, seed: SEED });
  const stops = fc.sample(
    fc.tuple(fc.nat(1), fc.double({ min: 0, max: 1, noNaN: true })),
    { numRuns: count, seed: SEED },
  ).map(([rank, share], i): Stop => ({
    moment: moments[(first + i) % moments.length]!,
    rank,
    share,
  }));
  for (const [i, stop] of stops.entries()) {
    const { moment, rank } = stop;
    t.test(`${launcher.name}: stop ${i + 1}, ${moment}, of rank ${rank}`, {
      skip: launcher.skip ||
        process.platform !== "linux" && "there is no /proc",
      buffered: true,
    }, async (t) => {
      const { problems, seconds, code, message } = await stopRank(launcher, {
        scratch,
        model,
        deadline: DEADLINE,
      }, stop);
      t.comment(`${seconds.toFixed(1)} s to exit code ${code}: ${message}`);
      t.strictSame(problems, [], repeatWith());
    });
  }
}
