/**
 * How fast the CPU device is against others on the same CPU and as many threads: the expert FFN against onnxruntime,
 * prefill and decode against llama.cpp. Installs them into bench/peers/ at first. `--runs N`, `--only ffn|decode`.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { machine } from "./measure.ts";
import { compareDecode } from "./peers/decode.ts";
import { compareExpertFfn } from "./peers/expert_ffn.ts";
import { installPeers } from "./peers/install.ts";
import type { Run } from "./peers/run.ts";

const { values: flags } = parseArgs({
  options: {
    runs: { type: "string", default: "15" },
    only: { type: "string" },
  },
});
const folder = mkdtempSync(join(tmpdir(), "switchyard-peers-"));
try {
  const run: Run = {
    // As many as the CPU device takes by default.
    threads: availableParallelism(),
    pairs: Number(flags.runs),
    warmUp: 3,
    folder,
    versions: installPeers(),
  };
  console.log(`${machine()}, ${run.threads} threads each`);
  if (flags.only !== "decode") await compareExpertFfn(run);
  if (flags.only !== "ffn") await compareDecode(run);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
// The peers keep threads of their own.
process.exit();
