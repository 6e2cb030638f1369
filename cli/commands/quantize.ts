/** `switchyard quantize`: a checkpoint with smaller weights, and how far it is from the original. */

import {
  quantizeCheckpoint,
  type Quantized,
  type QuantizeTargetName,
  type Rule,
} from "../../engine/mod.ts";
import { sizeText } from "../../spec/size_text.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { createBar } from "../progress.ts";
import { UsageError } from "../values.ts";
import {
  documentOf,
  encodeFiles,
  measure,
  type PerplexityFlags,
  scoreText,
} from "./perplexity.ts";

/** Flags of `quantize`. */
export interface QuantizeFlags
  extends Omit<PerplexityFlags, "against" | "stride"> {
  readonly to: QuantizeTargetName;
  readonly out?: string;
  readonly rules: readonly Rule[];
  readonly text?: readonly string[];
}

/** Quantize a checkpoint, and compare it with the original on texts. */
export async function quantizeCommand(
  base: CliIo,
  name: string,
  flags: QuantizeFlags,
): Promise<number> {
  if (flags.devices === "mpi") {
    throw new UsageError(
      "Cannot use quantize with --devices mpi: one process writes. Leave --devices out",
    );
  }
  const { io, model } = await locate(base, name, flags);
  const { to, rules, text } = flags;
  const last = name.split(/[/\\]/).findLast((part) => part !== "") ?? name;
  const out = flags.out ??
    `${last.replace(/\.gguf$|@.*$/, "")}-${to}${to === "fp8" ? "" : ".gguf"}`;
  // Texts that cannot be read are reported before anything is written.
  const texts = text &&
    await encodeFiles(io, model, { files: text, limit: flags.limit });
  const bar = createBar(io, `Quantizing to ${to} {bar} {percentage} %`, 1);
  const quantized = await quantizeCheckpoint(model, io.files, {
    to,
    out,
    rules,
    onProgress: (done, total) => bar.update(done / total),
  }).finally(bar.stop);
  if (!flags.json) await io.out(quantizedText(quantized, out));
  const measured = texts &&
    await measure(io, { models: [out, model], texts, flags });
  if (flags.json) {
    await io.out(
      `${
        JSON.stringify(
          {
            out,
            ...quantized,
            ...measured ? { score: documentOf(measured) } : {},
          },
          null,
          2,
        )
      }\n`,
    );
  } else if (measured) await io.out(scoreText(measured));
  return 0;
}

function quantizedText(
  { before, after, types }: Quantized,
  out: string,
): string {
  const parts = Object.entries(types).map(([type, bytes]) =>
    `${type} ${sizeText(bytes)}`
  );
  return `wrote ${out}: ${sizeText(after)} of ${sizeText(before)} (${
    parts.join(", ")
  })\n`;
}
