/** Cores available to this process: of the machine, and of the CPU quotas of its control groups. */

import { availableParallelism } from "node:os";
import { groupFolders, readText } from "./control_groups.ts";

/**
 * Available cores, at least 1. A quota is rounded down: with more threads than cores, the system pauses all of them,
 * and others wait. `read` returns the text of a file, empty if there is none.
 */
export function availableCores(
  read: (file: string) => string = readText,
  cores = availableParallelism(),
): number {
  const folders = groupFolders(read("/proc/self/cgroup"), "cpu");
  const quotas = folders.flatMap((folder) => {
    const [quota, period] = read(`/sys/fs/cgroup${folder}/cpu.max`).split(" ");
    // Version 1.
    const own = `/sys/fs/cgroup/cpu${folder}`;
    return [
      Number(quota || NaN) / Number(period),
      Number(read(`${own}/cpu.cfs_quota_us`) || NaN) /
      Number(read(`${own}/cpu.cfs_period_us`)),
    ];
  }).filter((quota) => quota > 0);
  return Math.max(1, Math.floor(Math.min(cores, ...quotas)));
}
