// Published families with standard attention and other experts or norm orders, rotating over meshes.
// needs: cpu, gpu
import { testInTurns } from "../helpers/references.ts";

testInTurns([
  "glm4moe-16e",
  "glm4moelite-16e",
  "minimaxm2-16e",
  "dots1-16e",
  "hunyuanmoe-12e",
  "ernie45moe-16e",
  "flexolmo-10e",
  "gemma4moe-12e",
  "gemma4moe-6e-wrapped",
  "gemma4moe-8e-ple",
  "longcatflash-12e",
  "solaropen-12e",
  "qwen3vlmoe-8e",
  "qwen3omnimoe-8e",
  "glm4vmoe-12e",
  "afmoe-12e",
  "exaonemoe-12e",
  "bailingmoe-16e",
  "mimov2-12e",
  "step3p5-12e",
  "hyv3-12e",
  "laguna-12e",
  "ernie45vlmoe-12e",
  "cohere2moe-12e",
  "cohere2moe-12e-wrapped",
  "mellum-12e",
  "axk1-12e",
  "minimaxm3-12e",
]);
