// The families that demonstrations run on, on many meshes.
// needs: cpu, gpu
import { testReferences } from "../helpers/references.ts";

testReferences(
  ["olmoe-16e", "mixtral-8e", "mixtral-6e", "demo-lm"],
  ["ep=1", "ep=2", "ep=3", "ep=4", "ep=8", "dp=2,ep=2"],
  { software: ["ep=1", "dp=2,ep=2"] },
);
