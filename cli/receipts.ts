/** Writes receipts. */

import {
  type Checkpoint,
  hashCheckpoint,
  type Opened,
  type Receipt,
  receiptPlan,
} from "../engine/mod.ts";
import type { PlanFlags } from "./flags/flags.ts";
import type { CliIo } from "./io.ts";

/** A run that may have receipts. */
export interface ReceiptRun extends Pick<Receipt, "model"> {
  readonly opened: Pick<Opened, "plan" | "device">;
  readonly flags: PlanFlags;
}

/** Returns the fields of a receipt about the run, without its checkpoint and its sequences. */
export async function receiptOfRun(
  { model, opened, flags: { kvCacheDtype, activations, wire } }: ReceiptRun,
): Promise<Omit<Receipt, "checkpoint" | "sequences">> {
  return {
    version: 1,
    model,
    device: opened.device,
    plan: await receiptPlan(opened.plan, {
      ...kvCacheDtype === undefined ? {} : { kvCacheDtype },
      ...activations === undefined ? {} : { activations },
      ...wire === undefined ? {} : { wire },
    }),
  };
}

/** Writes a receipt to a file. Reads all weights. */
export async function writeReceipt(
  io: Pick<CliIo, "files">,
  path: string,
  { checkpoint, sequences, ...run }:
    & ReceiptRun
    & Pick<Receipt, "sequences">
    & { readonly checkpoint: Checkpoint },
): Promise<void> {
  const receipt: Receipt = {
    ...await receiptOfRun(run),
    checkpoint: await hashCheckpoint(checkpoint, io.files),
    sequences,
  };
  const text = `${JSON.stringify(receipt, null, 2)}\n`;
  await io.files.write(path, [new TextEncoder().encode(text)]);
}
