// Families of the demonstrations on many meshes.
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

// Besides one rank, each mesh runs on one of these checkpoints, by SEED.
for (const [i, name] of ["olmoe-16e", "mixtral-8e", "demo-lm"].entries()) {
  const rotated = (meshes: readonly string[]) =>
    meshes.filter((_, n) => isInTurn(i + n, 3));
  testReferences(
    [name],
    {
      shared: ["ep=1", ...rotated(MESHES.shared.slice(1))],
      separate: rotated(MESHES.separate),
    },
    { shared: rotated(["ep=1", "dp=2,ep=2", "tp=2,ep=2"]), separate: [] },
  );
}
// Six experts: 4 and 8 ranks have unequal numbers, including none. Half of the other meshes run.
const others = MESHES.shared.filter((mesh) => !/^ep=[148]$/.test(mesh));
testReferences(["mixtral-6e"], {
  shared: ["ep=1", "ep=4", "ep=8", ...inTurn(others, 2)],
  separate: MESHES.separate,
}, {
  shared: inTurn(["ep=1", "dp=2,ep=2", "tp=2,ep=2"], 3),
  separate: oneInTurn(MESHES.separate),
});
