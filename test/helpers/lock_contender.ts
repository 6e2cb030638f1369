/** A process that contends for locks: it takes those it is sent, so many times at once, says how often it succeeded, and releases them when told to. */

import process from "node:process";
import { nodeFiles } from "../../cli/files.ts";
import type { Lock } from "../../engine/files.ts";

/** What it is told. */
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
