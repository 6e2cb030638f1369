/** Memory available to this process: of the machine, and of its control group. */

import { readFileSync } from "node:fs";
import { freemem } from "node:os";

/** Fraction of available memory that is reserved for everything else. */
export const SPARE = 0.1;

/** Files with limits and usage of control groups, version 2 and version 1. */
const GROUPS = [
  ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"],
  [
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
  ],
] as const;

/** Available bytes. */
export function availableMemory(): number {
  const available = /^MemAvailable:\s+(\d+) kB/m.exec(read("/proc/meminfo"));
  const machine = available ? 1024 * Number(available[1]) : freemem();
  const groups = GROUPS.map(([limit, used]) =>
    Number(read(limit) || Infinity) - Number(read(used) || 0)
  ).filter((left) => !Number.isNaN(left));
  return Math.floor((1 - SPARE) * Math.min(machine, ...groups));
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
