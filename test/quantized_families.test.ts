/** Checkpoints with quantized weights: FP8 in blocks, which do not divide their matrices, and INT4 in groups. */
// needs: cpu, gpu
import { testReferences } from "./helpers/references.ts";

const NONE = { shared: [], separate: [] };

testReferences(["deepseekv3-16e-fp8"], {
  shared: ["ep=1", "ep=2", "tp=2,ep=2"],
  separate: [],
}, NONE);
testReferences(["kimik2-16e-int4"], {
  shared: ["ep=1", "ep=4", "tp=2,ep=2"],
  separate: [],
}, { shared: ["ep=1"], separate: [] });
