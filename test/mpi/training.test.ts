// Training between processes of real MPI jobs: losses, norms, parameters and optimizer state have the bits of one process.
// needs: cpu, mpi
import process from "node:process";
import t from "tap";
import { launcherArguments } from "../../cli/mpi_launcher.ts";
import { startedProgram } from "../helpers/compiled.ts";
import { launchersInTurn, start } from "../helpers/mpi.ts";
import { closeDevices, digest, runCase } from "../helpers/run_model.ts";
import { stepCase } from "../helpers/training_layer.ts";
import { inTurn } from "../helpers/seed.ts";

t.teardown(closeDevices);

const RANK = startedProgram("test/helpers/training_rank.ts");

/** Each axis beside another one; test/mpi/train.test.ts has ep alone. */
const MESHES = [{ dp: 2, ep: 2 }, { tp: 2, ep: 2 }];

for (const { name, command, family, skip } of launchersInTurn()) {
  for (const mesh of inTurn(MESHES, MESHES.length)) {
    const ranks = Object.values(mesh).reduce((a, b) => a * b);
    t.test(`${name}: steps on ${ranks} ranks, ${JSON.stringify(mesh)}`, {
      skip,
    }, async (t) => {
      const root = process.getuid?.() === 0;
      const { code, out, err } = await start(command!, [
        ...launcherArguments(family, { ranks, root }),
        ...[process.execPath, ...RANK, JSON.stringify(mesh)],
      ]).ended;
      t.equal(code, 0, err);
      const shared = digest(await runCase(await stepCase(), "cpu", { mesh }));
      t.equal(out.trimEnd(), shared, "the same bits");
      t.match(shared, /next\.gate/);
    });
  }
}
