// Every checkpoint with heads, hidden elements and vocabulary over `tp`, alone and with experts over both: the bits of one rank.
// needs: cpu, gpu
import { testReferences } from "../helpers/references.ts";

const MESHES = ["ep=1", "tp=2", "tp=4", "tp=2,ep=2", "dp=2,tp=2"];

testReferences(["mixtral-6e"], [...MESHES, "dp=2,tp=2,ep=2"], {
  ...{ software: ["ep=1", "tp=2,ep=2"], separate: "tp=2,ep=2" },
});
testReferences(
  [
    "demo-lm",
    "deepseekv2-16e",
    "deepseekv2-lite-8e",
    "deepseekv3-16e",
    "gptoss-8e",
    "gptoss-8e-mxfp4",
    "granitemoe-8e",
    "llama4-8e",
    "mixtral-8e",
    "olmoe-16e",
    "qwen2moe-8e",
    "qwen3moe-16e",
    "qwen3moe-8e-bf16",
  ],
  [...MESHES, "dp=2,tp=2,ep=2"],
  { software: [], separate: "tp=2,ep=2" },
);
