/**
 * The speed of this project against others on one adapter: the expert FFN, and prefill and decode of the bundled
 * checkpoint. The others are onnxruntime, llama.cpp, TensorFlow.js and jax-js, which are installed into bench/peers/ on
 * first use. Flags: `--adapter NUMBER` (default 0), `--runs N`, `--only ffn|decode`, `--out FILE`.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { openGpu } from "../runtime/mod.ts";
import { compareDecodeOnGpu } from "./peers/gpu_decode.ts";
import { compareFfnOnGpu } from "./peers/gpu_ffn.ts";
import type { GpuRun } from "./peers/gpu_run.ts";
import { installPeers } from "./peers/install.ts";
import { report } from "./results.ts";

const { values: flags } = parseArgs({
  options: {
    adapter: { type: "string", default: "0" },
    runs: { type: "string", default: "11" },
    only: { type: "string" },
    out: { type: "string" },
  },
});
const folder = mkdtempSync(join(tmpdir(), "switchyard-peers-"));
try {
  const versions = installPeers();
  const run: GpuRun = {
    adapter: await openGpu(Number(flags.adapter)),
    threads: availableParallelism(),
    pairs: Number(flags.runs),
    warmUp: 3,
    folder,
  };
  const parts = [
    ...flags.only === "decode" ? [] : [await compareFfnOnGpu(run)],
    ...flags.only === "ffn" ? [] : [await compareDecodeOnGpu(run)],
  ];
  report({
    program: "gpu_peers",
    adapter: run.adapter.name,
    versions: {
      ...versions,
      "@tensorflow/tfjs": versions["@tensorflow/tfjs-core"]!,
    },
    works: parts.flatMap(({ works }) => works),
    ratios: Object.assign({}, ...parts.map(({ ratios }) => ratios)),
  }, flags.out);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
// The threads of the other projects keep the process alive.
process.exit();
