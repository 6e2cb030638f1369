/** Writes receipts. */

import {
  type Checkpoint,
  hashCheckpoint,
  type Opened,
  type Receipt,
  receiptPlan,
} from "../engine/mod.ts";
import type { PlanFlags } from "./flags.ts";
import type { CliIo } from "./io.ts";

/** A run whose receipt is written. */
export interface ReceiptRun extends Pick<Receipt, "model" | "sequences"> {
  readonly checkpoint: Checkpoint;
  readonly opened: Pick<Opened, "plan" | "device">;
  readonly flags: PlanFlags;
}

/** Returns a receipt. Reads all weights. */
export async function makeReceipt(
  { files }: Pick<CliIo, "files">,
  { model, checkpoint, opened, flags, sequences }: ReceiptRun,
): Promise<Receipt> {
  const { kvCacheDtype, activations } = flags;
  return {
    version: 1,
    model,
    device: opened.device,
    plan: await receiptPlan(opened.plan, {
      ...kvCacheDtype === undefined ? {} : { kvCacheDtype },
      ...activations === undefined ? {} : { activations },
    }),
    checkpoint: await hashCheckpoint(checkpoint, files),
    sequences,
  };
}

/** Writes a receipt to a file. */
export async function writeReceipt(
  io: Pick<CliIo, "files">,
  path: string,
  run: ReceiptRun,
): Promise<void> {
  const receipt = await makeReceipt(io, run);
  const text = `${JSON.stringify(receipt, null, 2)}\n`;
  await io.files.write(path, [new TextEncoder().encode(text)]);
}
