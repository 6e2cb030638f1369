// The families that demonstrations run on, on many meshes.
// needs: cpu, gpu
import { TENSOR_PARALLEL, testReferences } from "../helpers/references.ts";
import { inTurn, isInTurn, oneInTurn } from "../helpers/seed.ts";

const MESHES = {
  shared: [
    ...["ep=1", "ep=2", "ep=3", "ep=4", "ep=8", "dp=2,ep=2"],
    ...TENSOR_PARALLEL,
  ],
  separate: ["ep=4", "tp=2,ep=2"],
};

// Each mesh runs on one of these checkpoints, by SEED, besides one rank.
for (const [i, name] of ["olmoe-16e", "mixtral-8e", "demo-lm"].entries()) {
  const mine = (meshes: readonly string[]) =>
    meshes.filter((_, n) => isInTurn(i + n, 3));
  testReferences(
    [name],
    {
      shared: ["ep=1", ...mine(MESHES.shared.slice(1))],
      separate: mine(MESHES.separate),
    },
    { shared: mine(["ep=1", "dp=2,ep=2", "tp=2,ep=2"]), separate: [] },
  );
}
// Six experts: 4 and 8 ranks have unequal numbers, or none. Half of the other meshes run.
const others = MESHES.shared.filter((mesh) => !/^ep=[148]$/.test(mesh));
testReferences(["mixtral-6e"], {
  shared: ["ep=1", "ep=4", "ep=8", ...inTurn(others, 2)],
  separate: MESHES.separate,
}, {
  shared: inTurn(["ep=1", "dp=2,ep=2", "tp=2,ep=2"], 3),
  separate: oneInTurn(MESHES.separate),
});
