// Published families with recurrences and convolutions, rotating over meshes.
// needs: cpu, gpu
import { testInTurns } from "../helpers/references.ts";

testInTurns([
  "qwen3next-16e",
  "qwen35moe-16e",
  "qwen35moe-8e-wrapped",
  "granitemoehybrid-12e",
  "nemotronh-16e",
  "nemotronhlatent-12e",
  "lfm2moe-16e",
  "kimilinear-12e",
  "kimik3-12e",
  "bailingmoev3-12e",
]);
