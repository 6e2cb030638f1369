/**
 * Rank of an MPI job that prints its peak memory and the bytes of its weights as JSON: `memory_rank.ts FOLDER open|load
 * ADAPTER`. `open` opens a device for the checkpoint in FOLDER, `load` also loads it.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { nodeFiles } from "../../cli/files.ts";
import { loadTarget, openTarget, planTarget } from "../../engine/mod.ts";
import { selectDevices } from "../../engine/devices.ts";
import { onRank } from "../../spec/plan/plan.ts";

const [folder, mode, adapter] = process.argv.slice(2) as [
  ...[string, "open" | "load", string],
];
const files = nodeFiles();
const target = await loadTarget(folder, files);
const options = {
  sharing: "mpi" as const,
  adapter: adapter === "cpu" ? "cpu" as const : [Number(adapter)],
  bounds: { maxTokens: 16, maxSequences: 1, maxContext: 64 },
};
const { world, ...selected } = await selectDevices(options);
const mesh = { ep: world!.size };
const { limits } = selected;
const plan = await planTarget(target, files, { ...options, limits, mesh });
let close: () => Promise<void>;
if (mode === "load") {
  const opened = await openTarget(target, files, { ...options, mesh });
  close = () => opened.close();
} else {
  const opened = await selected.open(plan);
  close = async () => {
    for (const device of opened.devices) device.destroy();
    await opened.close();
  };
}
const peak = /VmHWM:\s+(\d+) kB/.exec(
  readFileSync("/proc/self/status", "utf8"),
);
const weights = plan.weights.reduce(
  (sum, { buffer }) => sum + onRank(plan.buffers[buffer]!.bytes, world!.rank),
  0,
);
const bytes = 1024 * Number(peak![1]);
console.log(JSON.stringify({ rank: world!.rank, bytes, weights }));
await world!.finish();
await close();
