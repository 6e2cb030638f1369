/** This project's side: targets opened on the CPU device as every command opens them. */

import { availableParallelism } from "node:os";
import { nodeFiles } from "../../cli/files.ts";
import { type Opened, openTarget, type Target } from "../../engine/mod.ts";
import type { Need } from "../../engine/mod.ts";

/** Open a target on the CPU device, with all that is there by default. */
export async function openOnCpu(
  target: Target,
  options: { readonly weights?: string; readonly need?: Need } = {},
): Promise<Opened> {
  return await openTarget(target, nodeFiles(), {
    ...options,
    sharing: "shared",
    adapter: "cpu",
    threads: availableParallelism(),
  });
}

/** Let threads of the other side that wait in a loop for more work fall asleep. */
export async function pause(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 30));
}
