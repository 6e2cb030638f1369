/**
 * Test files by their requirements. A file states them in a line `// needs: cpu, gpu`: the CPU device, a GPU adapter,
 * an MPI. A file without that line is pure.
 */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./setup.mjs";

/** The kinds of tests. A file with several kinds belongs to the last of them. */
export const KINDS = ["pure", "cpu", "gpu", "mpi", "browser"];

/**
 * The longest tests, the first ones in descending order. They start first, so that no long test runs alone at the end.
 */
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
  "fuzz",
  "lora",
  "gguf",
  "multi_token_prediction",
  "context",
  "editor",
  "kernels_matmul",
  "kernels_split",
  "kernels_attention",
  "lowering_",
  "hostile_",
  "disk_faults",
  "expert_memory",
  "guides",
  "cli_run",
  "next_tokens",
];

/** Returns the kinds of a test file, in the order of `KINDS`. Throws an `Error` for an unknown kind. */
export function kindsOf(file) {
  const path = join(ROOT, file);
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  const said = /^\/\/ needs: (.*)$/m.exec(text);
  const kinds = said === null ? ["pure"] : said[1].split(", ");
  const unknown = kinds.find((kind) => !KINDS.includes(kind));
  if (unknown !== undefined) {
    throw new Error(
      `Cannot run '${file}': it needs '${unknown}'. Name its kinds, among cpu, gpu, mpi and browser`,
    );
  }
  return KINDS.filter((kind) => kinds.includes(kind));
}

/**
 * Returns the files that words select, longest first. Words are kinds, parts of paths, or files; without words, all
 * files. `kinds` are those among the words, or all.
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

/** Returns the position of a file in the order. */
function place(file) {
  const found = LONG.findIndex((part) => file.startsWith(join("test", part)));
  return found < 0 ? LONG.length : found;
}
