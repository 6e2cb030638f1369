/**
 * The speed of the CPU devices against others on the same CPU with the same number of threads: the expert FFN against
 * onnxruntime, prefill and decode against llama.cpp. They are installed into bench/peers/ on first use. Flags: `--runs
 * N`, `--only ffn|decode`, `--prompt N` (256 tokens), `--out FILE.json` saves the figures. `--cores` uses one thread
 * each and counts core time, which other work on the machine affects less.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { compareDecode } from "./peers/decode.ts";
import { compareExpertFfn } from "./peers/expert_ffn.ts";
import { installPeers } from "./peers/install.ts";
import type { Compared, Run } from "./peers/run.ts";
import { report } from "./results.ts";

const { values: flags } = parseArgs({
  options: {
    runs: { type: "string", default: "15" },
    only: { type: "string" },
    prompt: { type: "string", default: "256" },
    cores: { type: "boolean", default: false },
    out: { type: "string" },
  },
});
const folder = mkdtempSync(join(tmpdir(), "switchyard-peers-"));
try {
  const run: Run = {
    // The default number of threads of the CPU device.
    threads: flags.cores ? 1 : availableParallelism(),
    now: flags.cores
      ? () => process.cpuUsage().user / 1e3
      : () => performance.now(),
    pairs: Number(flags.runs),
    warmUp: flags.prompt === "256" ? 3 : 1,
    folder,
    versions: installPeers(),
  };
  const parts: Compared[] = [];
  if (flags.only !== "decode") parts.push(await compareExpertFfn(run));
  if (flags.only !== "ffn") {
    parts.push(await compareDecode({ ...run, prompt: Number(flags.prompt) }));
  }
  report({
    program: "peers",
    adapter: flags.cores
      ? "1 thread each, time of cores"
      : `${run.threads} threads each`,
    flags: [
      ...flags.cores ? ["--cores"] : [],
      ...flags.only === undefined ? [] : ["--only", flags.only],
      ...flags.prompt === "256" ? [] : ["--prompt", flags.prompt],
    ],
    versions: run.versions,
    works: parts.flatMap(({ works }) => works),
    notes: parts.flatMap(({ notes }) => notes ?? []),
    ratios: Object.assign({}, ...parts.map(({ ratios }) => ratios)),
  }, flags.out);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
// The threads of the other projects keep the process alive.
process.exit();
