/** Memory that this process may still take: of the machine, and of its control group. */

import { readFileSync } from "node:fs";
import { freemem } from "node:os";

/** The part of it that is left for everything else. */
const SPARE = 0.1;

/** Limits of control groups and what they use, of version 2 and of version 1. */
const GROUPS = [
  ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"],
  [
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
  ],
] as const;

/** Bytes that may be taken. */
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
