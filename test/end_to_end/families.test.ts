// Published families with standard attention; three ranks have unequal numbers of experts.
// needs: cpu, gpu
import { testFamilies, testInTurns } from "../helpers/references.ts";

testFamilies(["qwen3moe-16e", "llama4-8e"]);

testInTurns(["qwen3moe-8e-bf16", "qwen2moe-8e", "granitemoe-8e"]);
