/** Numbers of threads: the maximum, and the cores that are available to this process. */

import { availableParallelism } from "node:os";
import { groupFolders, readText } from "./control_groups.ts";

/** Maximum number of threads of a native CPU device. */
export const MAX_NATIVE_THREADS = 256;

/**
 * Available cores, at least 1: of the machine, or of the smallest CPU quota of this process's control groups, rounded
 * down. With more threads, the system would pause all of them. `read` returns the text of a file, empty if there is
 * none.
 */
export function availableCores(
  read: (file: string) => string = readText,
  cores = availableParallelism(),
): number {
  const quotas = groupFolders("cpu", read).flatMap((folder) => {
    const version1 = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map((name) =>
      read(`/sys/fs/cgroup/cpu${folder}/${name}`)
    );
    return [read(`/sys/fs/cgroup${folder}/cpu.max`), version1.join(" ")];
  }).map((text) => {
    const [quota, period] = text.split(/\s+/);
    return Number(quota) / Number(period);
  }).filter((quota) => quota > 0);
  return Math.max(1, Math.floor(Math.min(cores, ...quotas)));
}
