// Published families with latent attention, or with sinks and four-bit weights; three ranks hold unequal numbers of experts.
// needs: cpu, gpu
import { TENSOR_PARALLEL, testReferences } from "../helpers/references.ts";

testReferences(
  [
    "deepseekv2-16e",
    "deepseekv2-lite-8e",
    "deepseekv3-16e",
    "gptoss-8e",
    "gptoss-8e-mxfp4",
  ],
  {
    shared: ["ep=1", "ep=3", "ep=4", ...TENSOR_PARALLEL],
    separate: ["ep=4", "tp=2,ep=2"],
  },
  { shared: ["ep=3"], separate: [] },
);
