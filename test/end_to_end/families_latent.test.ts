// Published families with latent attention, sparse or not, or with sinks and four-bit weights; three ranks have unequal
// numbers of experts.
// needs: cpu, gpu
import { testFamilies, testInTurns } from "../helpers/references.ts";

testFamilies(["deepseekv3-16e", "gptoss-8e"]);

testInTurns([
  "deepseekv2-16e",
  "deepseekv2-lite-8e",
  "gptoss-8e-mxfp4",
  "deepseekv32-16e",
  "glmmoedsa-16e",
  "deepseekv4-12e",
  "kimik25-12e",
  "mistral4-12e",
]);
