/**
 * Watches a rank that was started without `switchyard launch`, from before the program is loaded. If a signal stops a
 * rank, other ranks wait for it in `MPI_Init` without a time limit. Under `launch`, rank.sh watches the rank.
 */

import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

/**
 * Default number of seconds that a signal may stop a rank, if the command line has no `--deadline`. Equal to
 * `DEADLINE_MS` in runtime/mpi.
 */
export const DEADLINE_SECONDS = 120;

const SCRIPT = fileURLToPath(new URL("watch.sh", import.meta.url));

/** Starts the watcher of this process if its command line belongs to a rank. */
export function watchRank(argv) {
  const { platform, pid } = process;
  if (platform === "win32" || argv.includes("--job")) return;
  if (valueOf(argv, "--devices") !== "mpi") return;
  const given = Math.ceil(Number(valueOf(argv, "--deadline")));
  const seconds = given > 0 ? given : DEADLINE_SECONDS;
  const watcher = spawn("sh", [SCRIPT, String(pid), String(seconds)], {
    stdio: ["pipe", "ignore", "inherit"],
  });
  // Without a shell there is no watcher.
  watcher.on("error", () => {});
  watcher.unref();
  watcher.stdin?.unref();
}

function valueOf(argv, flag) {
  const at = argv.findIndex((word) =>
    word === flag || word.startsWith(`${flag}=`)
  );
  return argv[at]?.split("=")[1] ?? argv[at + 1];
}
