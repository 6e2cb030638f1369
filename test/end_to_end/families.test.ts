// Published families of the plain kind of attention; three ranks hold unequal numbers of experts.
// needs: cpu, gpu
import { TENSOR_PARALLEL, testReferences } from "../helpers/references.ts";

testReferences(
  [
    "qwen3moe-16e",
    "qwen3moe-8e-bf16",
    "qwen2moe-8e",
    "granitemoe-8e",
    "llama4-8e",
  ],
  {
    shared: ["ep=1", "ep=3", "ep=4", ...TENSOR_PARALLEL],
    separate: ["ep=4", "tp=2,ep=2"],
  },
  { shared: ["ep=3"], separate: [] },
);
