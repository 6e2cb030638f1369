// Families of the demonstrations on many meshes.
// needs: cpu, gpu
import { TENSOR_PARALLEL, testReferences } from "../helpers/references.ts";
import { inTurn, isInOuterTurn, isInTurn, oneInTurn } from "../helpers/seed.ts";

const MESHES = {
  shared: [
    ...["ep=1", "ep=2", "ep=3", "ep=4", "ep=8", "dp=2,ep=2"],
    ...TENSOR_PARALLEL,
  ],
  separate: ["ep=4", "tp=2,ep=2"],
};

/**
 * Checkpoint `i` runs optimized compiled C in every fourth run. Compiling the kernels of a mesh takes ten seconds.
 */
function optimized(i: number): { readonly native?: readonly string[] } {
  return isInOuterTurn(i, 4) ? {} : { native: [] };
}

/** Meshes of checkpoint `i` on a software GPU, in every second run: it compiles the kernels of a mesh for seconds. */
function software<T>(i: number, meshes: T): T | undefined {
  return isInOuterTurn(i + 1, 2) ? meshes : undefined;
}

// Besides one rank, each checkpoint runs one of six meshes, by SEED. Half of the meshes run.
for (const [i, name] of ["olmoe-16e", "mixtral-8e", "demo-lm"].entries()) {
  const rotated = (meshes: readonly string[], every: number) =>
    meshes.filter((_, n) => isInTurn(i + n, every));
  testReferences(
    [name],
    {
      ...optimized(i),
      shared: ["ep=1", ...rotated(MESHES.shared.slice(1), 6)],
      separate: rotated(MESHES.separate, 3),
    },
    software(i, {
      shared: rotated(["ep=1", "dp=2,ep=2", "tp=2,ep=2"], 3),
      separate: [],
    }),
  );
}
// Six experts: 4 and 8 ranks have unequal numbers, including none. One of them and a quarter of the other meshes run.
const others = MESHES.shared.filter((mesh) => !/^ep=[148]$/.test(mesh));
testReferences(
  ["mixtral-6e"],
  {
    ...optimized(3),
    shared: ["ep=1", ...inTurn(["ep=4", "ep=8"], 2), ...inTurn(others, 4)],
    separate: inTurn(MESHES.separate, 2),
  },
  software(3, {
    shared: inTurn(["ep=1", "dp=2,ep=2", "tp=2,ep=2"], 3),
    separate: oneInTurn(MESHES.separate),
  }),
);
