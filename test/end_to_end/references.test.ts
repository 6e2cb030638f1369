// The families that demonstrations run on, on many meshes.
// needs: cpu, gpu
import { TENSOR_PARALLEL, testReferences } from "../helpers/references.ts";

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
testReferences(["olmoe-16e", "mixtral-8e", "demo-lm"], MESHES, {
  shared: ["ep=1", "dp=2,ep=2"],
  separate: [],
});
