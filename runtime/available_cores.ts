/** Numbers of threads: the maximum, and the cores that are available to this process. */

import { availableParallelism } from "node:os";
import { groupFolders, readText } from "./control_groups.ts";

/** Maximum number of threads of a native CPU device. */
export const MAX_NATIVE_THREADS = 256;

/**
 * Available cores, at least 1: those of the machine, or the CPU quota of a control group, rounded down. With more threads
 * than its quota, the system pauses all threads of a group. `read` returns the text of a file, empty if there is none.
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
