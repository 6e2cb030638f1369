/**
 * Test files, by what they need of the machine. A file says that in a line `// needs: cpu, gpu`: the CPU device, a GPU
 * adapter, an MPI; a file without that line is pure.
 */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./setup.mjs";

/** The kinds of tests. A file of several counts as one of the last of them. */
export const KINDS = ["pure", "cpu", "gpu", "mpi", "browser"];

/** What takes longest, the longest first: started at the beginning, so that nothing long is left alone at the end. */
const LONG = [
  "mpi/mpi",
  "end_to_end/references",
  "mpi/faults",
  "end_to_end/families",
  "nodes",
  "train_durability",
  "train_masters",
  "mpi/network",
  "mpi/memory",
  "mpi/train",
  "pack",
  "view_page",
  "search",
  "training_references",
  "cli_machine",
  "style",
  "end_to_end/",
  "mpi/",
  "view",
  "train",
];

/** The kinds of a test file, in the order of `KINDS`; throws an `Error` for a kind that there is not. */
export function kindsOf(file) {
  const path = join(ROOT, file);
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  const said = /^\/\/ needs: (.*)$/m.exec(text);
  const kinds = said === null ? ["pure"] : said[1].split(", ");
  const unknown = kinds.find((kind) => !KINDS.includes(kind));
  if (unknown !== undefined) {
    throw new Error(
      `Cannot run '${file}': it needs '${unknown}'. Say what of cpu, gpu, mpi and browser it needs`,
    );
  }
  return KINDS.filter((kind) => kinds.includes(kind));
}

/**
 * The files that words mean, what takes longest first: kinds, parts of paths, or files. Without words all of them.
 * `kinds` are those among the words, or all.
 */
export function chooseFiles(words) {
  const asked = KINDS.filter((kind) => words.includes(kind));
  const parts = words.filter((word) => !KINDS.includes(word));
  const kinds = asked.length > 0 ? asked : KINDS;
  const files = parts.length > 0 && parts.every((part) => part.endsWith(".ts"))
    ? parts
    : readdirSync(join(ROOT, "test"), { recursive: true })
      .filter((name) => name.endsWith(".test.ts"))
      .map((name) => join("test", name))
      .filter((file) =>
        parts.length === 0 || parts.some((part) => file.includes(part))
      )
      .filter((file) => kindsOf(file).some((kind) => kinds.includes(kind)))
      .sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
  return { files, kinds };
}

/** Where a file comes among others. */
function place(file) {
  const found = LONG.findIndex((part) => file.startsWith(join("test", part)));
  return found < 0 ? LONG.length : found;
}
