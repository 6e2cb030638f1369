// The families that demonstrations run on, on many meshes.
// needs: cpu, gpu
import { TENSOR_PARALLEL, testReferences } from "../helpers/references.ts";
import { isInTurn } from "../helpers/seed.ts";

const MESHES = {
  shared: [
    ...["ep=1", "ep=2", "ep=3", "ep=4", "ep=8", "dp=2,ep=2"],
    ...TENSOR_PARALLEL,
  ],
  separate: ["ep=4", "tp=2,ep=2"],
};

testReferences(["mixtral-6e"], MESHES, {
  shared: ["ep=1", "dp=2,ep=2", "tp=2,ep=2"],
  separate: ["ep=4", "tp=2,ep=2"],
});
// One of these checkpoints runs a mesh, by SEED, besides one rank.
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
