// Failing ranks of MPI jobs: the job ends with one message that names the rank, host, step and cause, and leaves
// nothing behind.
// needs: cpu, mpi
import t from "tap";
import { temporaryFolder } from "../helpers/cli.ts";
import { FAULTS, makeFault, prepareFaults } from "../helpers/faults.ts";
import { alternating, LAUNCHERS } from "../helpers/mpi.ts";

const scratch = temporaryFolder(t);
await prepareFaults(scratch);

// Faults mostly wait for detection.
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
