// Published families of the plain kind of attention; three ranks hold unequal numbers of experts.
// needs: cpu, gpu
import { FAMILY_MESHES, testReferences } from "../helpers/references.ts";

testReferences(
  [
    "qwen3moe-16e",
    "qwen3moe-8e-bf16",
    "qwen2moe-8e",
    "granitemoe-8e",
    "llama4-8e",
  ],
  FAMILY_MESHES,
  { shared: ["ep=3"], separate: [] },
);
