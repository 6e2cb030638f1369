/**
 * Test files by their requirements and rotation. A file states its requirements in a line `// needs: cpu, gpu`: the CPU
 * device, a GPU adapter, an MPI. A file without that line is pure.
 *
 * A file of one feature may have a line `// rotates with: engine/gguf/, engine/lora/`: a seventh of these files run,
 * and those whose sources have changed, by the beginnings of their paths.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./setup.mjs";

/** The kinds of tests. A file with several kinds belongs to the last of them. */
export const KINDS = ["pure", "cpu", "gpu", "mpi", "browser"];

/**
 * The longest tests, the first ones in descending order. They start first, so that no long test runs alone at the end.
 */
const LONG = [
  "mpi/mpi.",
  "end_to_end/references",
  "mpi/faults",
  "pack",
  "end_to_end/families",
  "search",
  "style",
  "mpi/train",
  "nodes",
  "mpi/stages",
  "lora",
  "gguf",
  "view_page",
  "train_durability",
  "quantize",
  "mpi/network",
  "train_policy",
  "proof/deno",
  "editor",
  "operands",
  "cli_bad_input",
  "training_references",
  "mpi/communicator",
  "cache_folders",
  "pages",
  "multi_token_prediction",
  "speculation",
  "mpi/memory",
  "plan_summary",
  "train_masters",
  "mpi/",
  "cli_machine",
  "pipeline",
  "context",
  "view_timeline",
  "mistakes",
  "end_to_end/",
  "tune",
  "next_tokens",
  "train",
  "guides",
  "native_",
  "locks",
  "types",
  "devices_pci",
  "disk_faults",
  "fuzz",
  "serve",
  "kernels_",
  "lowering_",
  "hostile_",
  "expert_",
  "view",
  "cli_run",
];

/** Runs in which every file runs at least once. */
export const TURNS = 7;

/** Returns the comma-separated list of a line `// NAME: LIST` of a test file, or undefined. */
function listIn(file, name) {
  const path = join(ROOT, file);
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  return new RegExp(`^// ${name}: (.*)$`, "m").exec(text)?.[1].split(", ");
}

/** Returns the kinds of a test file, in the order of `KINDS`. Throws an `Error` for an unknown kind. */
export function kindsOf(file) {
  const kinds = listIn(file, "needs") ?? ["pure"];
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

/** Returns the beginnings of the paths of a file's sources if it rotates, or undefined. */
export function sourcesOf(file) {
  return listIn(file, "rotates with");
}

/**
 * Returns the files without those of other runs. `seed` determines the run independently of the rotations in files,
 * as `OUTER_SEED` in test/helpers/seed.ts. `changed` are the paths of changed files.
 */
export function rotateFiles(files, { seed, changed }) {
  const turn = (Math.imul(seed, 0x9e3779b1) >>> 16) % TURNS;
  const others = files
    .filter((file) => sourcesOf(file) !== undefined)
    .filter((_, i) => turnOf(i) !== turn)
    .filter((file) =>
      !changed.some((path) =>
        [file, ...sourcesOf(file)].some((source) => path.startsWith(source))
      )
    );
  return files.filter((file) => !others.includes(file));
}

/**
 * Returns the turn of file `i` of those that rotate. Every second round is reversed, so that turns take similar time:
 * the first files are the longest.
 */
function turnOf(i) {
  const [round, place] = [Math.floor(i / TURNS), i % TURNS];
  return round % 2 === 0 ? place : TURNS - 1 - place;
}

/**
 * Returns the paths that differ from a commit: `since`; else the common ancestor with the remote's default branch, if
 * this branch has commits of its own; else the parent of the last commit. Empty without a repository or a parent.
 * Throws an `Error` if there is no commit `since`.
 */
export function changedPaths(since, root = ROOT) {
  const git = (...argv) => {
    const options = { cwd: root, encoding: "utf8" };
    const { status, stdout } = spawnSync("git", argv, options);
    return status === 0 ? stdout.trim() : undefined;
  };
  const common = git("merge-base", "HEAD", "origin/HEAD");
  const isOwn = common !== undefined && common !== git("rev-parse", "HEAD");
  const base = since || (isOwn ? common : "HEAD~1");
  const paths = git("diff", "--name-only", base, "--");
  if (since && paths === undefined) {
    throw new Error(
      `Cannot compare with SINCE '${since}': the repository has no such commit. Fetch it, or name another`,
    );
  }
  return (paths ?? "").split("\n").filter((path) => path !== "");
}

/** Returns the position of a file in the order. */
function place(file) {
  const found = LONG.findIndex((part) => file.startsWith(join("test", part)));
  return found < 0 ? LONG.length : found;
}
