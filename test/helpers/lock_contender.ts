/**
 * Process that contends for locks. On each request it attempts to acquire a lock several times concurrently, reports
 * the number of successes, and holds the locks until a request to release them.
 */

import process from "node:process";
import { nodeFiles } from "../../cli/files.ts";
import type { Lock } from "../../engine/files.ts";

/** Request to a contender. */
export type ContenderTask =
  | { readonly lock: string; readonly times: number }
  | "release";

const files = nodeFiles();
let taken: readonly Lock[] = [];

process.on("message", async (task: ContenderTask) => {
  if (task === "release") {
    for (const lock of taken) if ("release" in lock) await lock.release();
    taken = [];
  } else {
    const { lock, times } = task;
    taken = await Promise.all(
      Array.from({ length: times }, () => files.lock(lock)),
    );
  }
  process.send!(taken.filter((lock) => "release" in lock).length);
});
