// Every other published family; three ranks hold unequal numbers of experts.
// needs: cpu, gpu
import { testReferences } from "../helpers/references.ts";

testReferences(
  [
    "qwen3moe-16e",
    "qwen3moe-8e-bf16",
    "qwen2moe-8e",
    "granitemoe-8e",
    "deepseekv2-16e",
    "deepseekv2-lite-8e",
    "deepseekv3-16e",
    "gptoss-8e",
    "gptoss-8e-mxfp4",
    "llama4-8e",
  ],
  ["ep=1", "ep=2", "ep=3", "ep=4"],
  { software: ["ep=3"] },
);
