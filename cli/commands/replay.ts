/** `switchyard replay`: generate the text of a receipt again, and compare. */

import { quantity } from "../../spec/quantity.ts";
import {
  checkpointDifferences,
  Decoder,
  decoderShape,
  hashCheckpoint,
  openTarget,
  readReceipt,
  replaySequences,
  TOGETHER,
} from "../../engine/mod.ts";
import { DataError, MachineError, printable } from "../../spec/mod.ts";
import type { DeviceFlags, PlanFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { createProgressBar } from "../progress.ts";
import { joinAsRank } from "../launch/rank.ts";
import { finishLine } from "../flags/values.ts";
import { openOptions, targetOf } from "./options.ts";

/** Maximum sequences that are repeated at the same time. */
const MAX_SEQUENCES = 16;

/** Flags of `replay`. */
export interface ReplayFlags extends PlanFlags, DeviceFlags {
  readonly model?: string;
  readonly json?: boolean;
}

/** Repeats a receipt. The exit code is 1 if anything differs, and the differences are printed. */
export async function replayCommand(
  base: CliIo,
  path: string,
  flags: ReplayFlags,
): Promise<number> {
  if (flags.devices === "mpi") await joinAsRank(base, flags);
  const receipt = await readReceipt(path, base.files);
  const { sequences, plan: { kvCacheDtype, activations, wire } } = receipt;
  const { io, model } = await locate(base, flags.model ?? receipt.model, flags);
  const target = await targetOf(io, model, flags);
  if (target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot replay with '${model}': it is no checkpoint folder. Give one with --model`,
    );
  }
  const bar = createProgressBar(io);
  const lengths = sequences.map(({ prompt, tokens }) =>
    prompt.length + tokens.length
  );
  const opened = await openTarget(target, io.files, {
    ...await openOptions(io, target, {
      ...flags,
      ...kvCacheDtype === undefined ? {} : { kvCacheDtype },
      ...activations === undefined ? {} : { activations },
      ...wire === undefined ? {} : { wire },
    }),
    next: { perSequence: TOGETHER },
    need: {
      tokens: lengths.reduce((n, length) => n + length, 0),
      sequences: Math.min(sequences.length, MAX_SEQUENCES),
      context: Math.max(...lengths),
      lengths,
    },
    onProgress: bar.update,
  }).finally(bar.stop);
  try {
    const { device } = opened;
    if (device !== receipt.device) {
      throw new MachineError(
        `Cannot replay '${path}' on '${device}': the receipt is of '${
          printable(receipt.device)
        }', and other kinds of devices round differently. Give its device with --adapter`,
      );
    }
    const hashes = await hashCheckpoint(target.checkpoint, io.files);
    const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
    const differences = [
      ...checkpointDifferences(receipt.checkpoint, hashes),
      ...await replaySequences(decoder, sequences),
    ];
    if (opened.rank === 0) await report(io, { differences, receipt, flags });
    await opened.finish();
    if (flags.job !== undefined && opened.rank === 0) {
      await io.out(`${finishLine(flags.job)}\n`);
    }
    return differences.length === 0 ? 0 : 1;
  } finally {
    await opened.close();
  }
}

async function report(
  io: CliIo,
  { differences, receipt: { sequences }, flags }: {
    readonly differences: readonly string[];
    readonly receipt: Awaited<ReturnType<typeof readReceipt>>;
    readonly flags: ReplayFlags;
  },
): Promise<void> {
  const equal = differences.length === 0;
  const tokens = sequences.reduce((n, one) => n + one.tokens.length, 0);
  const logits = sequences.reduce((n, one) => n + one.logits.length, 0);
  if (flags.json) {
    const document = { equal, tokens, logits, differences };
    await io.out(`${JSON.stringify(document, null, 2)}\n`);
  } else if (equal) {
    await io.out(
      `${quantity(tokens, "token")} and ${
        quantity(logits, "row")
      } of logits are equal\n`,
    );
  } else {
    for (const difference of differences) io.err(printable(difference));
  }
}
