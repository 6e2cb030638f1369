import { readFileSync } from "node:fs";

/**
 * Returns the processor seconds of this process, and of its ended descendants. Both are 0 if the system does not report
 * them.
 */
export function processorSeconds() {
  try {
    const text = readFileSync("/proc/self/stat", "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const [user, system, endedUser, endedSystem] = fields.slice(11, 15)
      .map((ticks) => Number(ticks) / 100);
    return { own: user + system, ended: endedUser + endedSystem };
  } catch {
    return { own: 0, ended: 0 };
  }
}
