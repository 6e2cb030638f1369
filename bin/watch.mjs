/**
 * Watches a rank that was started without `switchyard launch`, from before the program is loaded: other ranks wait for one
 * that a signal has stopped, in `MPI_Init` without an end. Under `launch`, rank.sh watches.
 */

import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** Seconds for which a signal may stop a rank, where the command line has no `--deadline`: as `DEADLINE_MS` of runtime/mpi. */
export const DEADLINE_SECONDS = 120;

const SCRIPT = fileURLToPath(new URL("watch.sh", import.meta.url));

/** Starts the watcher of this process if its command line is that of a rank. */
export function watchRank(argv) {
  const { platform, pid } = process;
  if (platform === "win32" || argv.includes("--job")) return;
  if (valueOf(argv, "--devices") !== "mpi") return;
  const given = Math.ceil(Number(valueOf(argv, "--deadline")));
  const seconds = given > 0 ? given : DEADLINE_SECONDS;
  const watcher = spawn("sh", [SCRIPT, String(pid), String(seconds)], {
    stdio: ["pipe", "ignore", "inherit"],
  });
  // Without a shell nobody watches.
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
