/** Checkpoints with quantized weights: FP8 in blocks, which do not divide their matrices, and INT4 in groups. */
// needs: cpu, gpu
// rotates with: engine/encodings/
import { testReferences } from "./helpers/references.ts";
import { inTurn, isInTurn } from "./helpers/seed.ts";

const NONE = { shared: [], separate: [] };

testReferences(["deepseekv3-16e-fp8"], {
  shared: ["ep=1", ...inTurn(["ep=2", "tp=2,ep=2"], 2)],
  separate: [],
}, NONE);
testReferences(["kimik2-16e-int4"], {
  shared: ["ep=1", ...inTurn(["tp=2,ep=2", "ep=4"], 2)],
  separate: [],
}, isInTurn(0, 3) ? { shared: ["ep=1"], separate: [] } : NONE);
