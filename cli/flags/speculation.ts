/** Flags of speculation in `generate` and `serve`. */

import type { Command } from "commander";
import { integer, UsageError } from "./values.ts";

/** The flags of speculation. */
export interface SpeculationFlags {
  readonly speculate?: number;
  readonly draft?: string;
}

/** Adds the flags to a command. */
export function speculationFlags(command: Command): Command {
  return command
    .option(
      "--speculate <n>",
      "Maximum drafted tokens per sequence and step. They are verified together and change no token. Default: 0.",
      integer("--speculate", 0, 64),
    )
    .option(
      "--draft <source>",
      "With --speculate, source of drafts: lookup (earlier tokens of the sequence), mtp (the checkpoint's layer for multi-token prediction), or another checkpoint, a folder or hub name. Default: lookup.",
    );
}

/** Throws UsageError for a flag without effect. */
export function checkSpeculation({ speculate, draft }: SpeculationFlags): void {
  if (draft === undefined || speculate) return;
  throw new UsageError(
    "Cannot use --draft without --speculate: no tokens are drafted. Give --speculate 4",
  );
}

/** Number of next tokens of a sequence in one step. */
export function nextPerSequence({ speculate = 0 }: SpeculationFlags): number {
  return 1 + speculate;
}
