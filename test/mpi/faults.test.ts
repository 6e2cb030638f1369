// Ranks of real MPI jobs that fail: the whole job ends, with one message that says who, where and why, and nothing is left.
// needs: cpu, mpi
import t from "tap";
import { temporaryFolder } from "../helpers/cli.ts";
import { FAULTS, makeFault, prepareFaults } from "../helpers/faults.ts";
import { alternating, LAUNCHERS } from "../helpers/mpi.ts";

const scratch = temporaryFolder(t);
await prepareFaults(scratch);

// Much of a fault is waiting for the others to notice it.
t.jobs = 2;

const linux = process.platform === "linux" ? false : "there is no /proc";

for (const launcher of LAUNCHERS) {
  for (const fault of alternating(FAULTS, launcher)) {
    t.test(`${launcher.name}: ${fault.name}`, {
      skip: launcher.skip || linux,
      buffered: true,
    }, async (t) => {
      const { problems, message } = await makeFault(
        launcher,
        scratch,
        fault,
      );
      t.strictSame(problems, [], message);
    });
  }
}
