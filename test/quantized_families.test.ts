/** Checkpoints with quantized weights: FP8 in blocks, which do not divide their matrices, and INT4 in groups. */
// needs: cpu, gpu
// rotates with: engine/encodings/
import { testReferences } from "./helpers/references.ts";
import { isInTurn, oneInTurn } from "./helpers/seed.ts";

const MESHES = ["ep=2", "tp=2,ep=2", "ep=4"] as const;
const NONE = { shared: [], separate: [] };

testReferences(["deepseekv3-16e-fp8"], {
  shared: ["ep=1", ...oneInTurn(MESHES)],
  separate: [],
}, NONE);
testReferences(["kimik2-16e-int4"], {
  shared: ["ep=1", ...oneInTurn(MESHES)],
  separate: [],
}, isInTurn(0, 3) ? { shared: ["ep=1"], separate: [] } : NONE);
