/** `switchyard merge`: write a checkpoint with the adapters of a folder. */

import { mergeLora } from "../../engine/mod.ts";
import { type CliIo, interruptible } from "../io.ts";
import { locate } from "../located.ts";
import { createBar } from "../progress.ts";

/** Flags of `merge`. */
export interface MergeFlags {
  readonly lora: string;
  readonly out: string;
  readonly revision?: string | undefined;
}

/** Merges adapters into a checkpoint. */
export async function mergeCommand(
  base: CliIo,
  name: string,
  { lora, out, revision }: MergeFlags,
): Promise<number> {
  const { io, model } = await locate(base, name, { revision });
  const bar = createBar(io, "Merging {bar} {percentage} %", 1);
  const count = await interruptible(
    io,
    (proceed) =>
      mergeLora(model, io.files, {
        lora,
        out,
        onProgress: (done, total) => {
          proceed();
          bar.update(done / total);
        },
      }),
  ).finally(bar.stop);
  await io.out(`Wrote '${out}' with ${count} merged matrices\n`);
  return 0;
}
