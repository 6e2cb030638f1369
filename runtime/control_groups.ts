/** Control groups of Linux, which limit the resources of a container. */

import { readFileSync } from "node:fs";

/** Folders of the groups of this process and of their ancestors. `read` returns the text of a file. */
export function groupFolders(
  controller: "cpu" | "memory",
  read: (file: string) => string,
): string[] {
  const folders = new Set([""]);
  for (const line of read("/proc/self/cgroup").split("\n")) {
    const [, controllers = "-", path = ""] = line.split(":");
    if (controllers !== "" && !controllers.split(",").includes(controller)) {
      continue;
    }
    const names = path.split("/").filter((name) => name !== "");
    names.forEach((_, i) => folders.add(`/${names.slice(0, i + 1).join("/")}`));
  }
  return [...folders];
}

/** The text of a file, empty if it cannot be read. */
export function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
