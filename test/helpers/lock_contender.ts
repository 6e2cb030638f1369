/** A process that contends for locks. For each request it makes several attempts at once, reports the number of successes, and holds the locks until it is asked to release them. */

import process from "node:process";
import { nodeFiles } from "../../cli/files.ts";
import type { Lock } from "../../engine/files.ts";

/** A request. */
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
