/** Memory available to this process: of the machine, and of its control groups. */

import { freemem } from "node:os";
import { sum } from "../../spec/sum.ts";
import { groupFolders, readText } from "../control_groups.ts";

/** Fraction of available memory that is reserved for everything else. */
export const SPARE = 0.1;

/** Files of a control group, version 2 and version 1: its limit and its usage, in bytes. */
const VERSIONS = [
  { root: "/sys/fs/cgroup", limit: "memory.max", used: "memory.current" },
  {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
  },
] as const;

/** Available bytes. `read` returns the text of a file, empty if there is none. */
export function availableMemory(
  read: (file: string) => string = readText,
): number {
  const available = /^MemAvailable:\s+(\d+) kB/m.exec(read("/proc/meminfo"));
  const machine = available ? 1024 * Number(available[1]) : freemem();
  const folders = groupFolders("memory", read);
  const groups = VERSIONS.flatMap(({ root, limit, used }) =>
    folders.map((folder) => {
      const all = Number(read(`${root}${folder}/${limit}`) || Infinity);
      const stat = read(`${root}${folder}/memory.stat`);
      return all - Number(read(`${root}${folder}/${used}`)) + cachedIn(stat);
    })
  ).filter((left) => !Number.isNaN(left));
  return Math.floor((1 - SPARE) * Math.min(machine, ...groups));
}

/** Bytes of cached files of a control group, which the system frees on demand. */
function cachedIn(stat: string): number {
  const bytes = (key: string) =>
    Number(new RegExp(`^${key} (\\d+)`, "m").exec(stat)?.[1] ?? 0);
  return sum(
    ["active_file", "inactive_file"].map((key) =>
      bytes(`total_${key}`) || bytes(key)
    ),
  );
}
