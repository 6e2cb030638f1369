/** Memory available to this process: of the machine, and of its control groups. */

import { readFileSync } from "node:fs";
import { freemem } from "node:os";
import { sum } from "../../spec/sum.ts";

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
export function availableMemory(read: (file: string) => string = text): number {
  const available = /^MemAvailable:\s+(\d+) kB/m.exec(read("/proc/meminfo"));
  const machine = available ? 1024 * Number(available[1]) : freemem();
  const folders = foldersOf(read("/proc/self/cgroup"));
  const groups = VERSIONS.flatMap(({ root, limit, used }) =>
    folders.map((folder) => {
      const all = Number(read(`${root}${folder}/${limit}`) || Infinity);
      const stat = read(`${root}${folder}/memory.stat`);
      return all - Number(read(`${root}${folder}/${used}`)) + cachedIn(stat);
    })
  ).filter((left) => !Number.isNaN(left));
  return Math.floor((1 - SPARE) * Math.min(machine, ...groups));
}

/** Folders of the control groups of this process and of their ancestors. */
function foldersOf(groups: string): string[] {
  const folders = new Set([""]);
  for (const line of groups.split("\n")) {
    const [, controllers = "-", path = ""] = line.split(":");
    if (controllers !== "" && !controllers.split(",").includes("memory")) {
      continue;
    }
    const names = path.split("/").filter((name) => name !== "");
    names.forEach((_, i) => folders.add(`/${names.slice(0, i + 1).join("/")}`));
  }
  return [...folders];
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

function text(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
