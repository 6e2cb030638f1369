/** `switchyard quantize`: write a checkpoint with smaller weights, and measure its difference from the original. */

import {
  type Importance,
  measureImportance,
  openTarget,
  quantizeCheckpoint,
  type Quantized,
  type QuantizeTargetName,
  type Rule,
} from "../../engine/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { sizeText } from "../../spec/size_text.ts";
import { type CliIo, interruptible } from "../io.ts";
import { locate } from "../located.ts";
import { createBar, createProgressBar } from "../progress.ts";
import { refuseFlags, UsageError } from "../flags/values.ts";
import { openOptions } from "./options.ts";
import {
  documentOf,
  encodeFiles,
  measure,
  type PerplexityFlags,
  scoredTarget,
  scoreText,
  windowsFor,
} from "./perplexity.ts";

/** Flags of `quantize`. */
export interface QuantizeFlags
  extends Omit<PerplexityFlags, "against" | "stride"> {
  readonly to: QuantizeTargetName;
  readonly out?: string;
  readonly rules: readonly Rule[];
  readonly text?: readonly string[];
  readonly importance?: readonly string[];
}

/** Quantizes a checkpoint, and compares it with the original on texts. */
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
  const { to, rules, text } = flags;
  if (text === undefined && flags.importance === undefined) {
    refuseFlags(
      {
        "--mesh": flags.mesh,
        "--place": flags.place,
        "--window": flags.window,
        "--limit": flags.limit,
      },
      "without --text or --importance: the model does not run. Leave it out, or give one of them",
    );
  }
  const { io, model } = await locate(base, name, flags);
  const last = name.split(/[/\\]/).findLast((part) => part !== "") ?? name;
  const out = flags.out ??
    `${last.replace(/\.gguf$|@.*$/, "")}-${to}${to === "fp8" ? "" : ".gguf"}`;
  // Reports large windows, unreadable texts and short ones before anything is written.
  if (flags.window !== undefined) {
    windowsFor([await scoredTarget(io, model, flags)], flags);
  }
  const texts = text &&
    await encodeFiles(io, model, { files: text, limit: flags.limit });
  if (texts?.every(({ length }) => length < 2)) {
    throw new DataError(
      "Cannot score the texts: they have fewer than two tokens. Give longer ones",
    );
  }
  const importance = flags.importance &&
    await importanceFrom(io, model, { files: flags.importance, flags });
  const bar = createBar(io, `Quantizing to ${to} {bar} {percentage} %`, 1);
  const threads = flags.threads ?? io.threads;
  const encoder = threads > 1 ? io.encodeThreads?.(threads) : undefined;
  const quantized = await interruptible(
    io,
    (proceed) =>
      quantizeCheckpoint(model, io.files, {
        to,
        out,
        rules,
        ...importance ? { importance } : {},
        ...encoder ? { encoder } : {},
        onProgress: (done, total) => {
          proceed();
          bar.update(done / total);
        },
      }),
  ).finally(async () => {
    bar.stop();
    await encoder?.close();
  });
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

/** Importance of columns, measured on texts. */
async function importanceFrom(
  io: CliIo,
  model: string,
  { files, flags }: {
    readonly files: readonly string[];
    readonly flags: QuantizeFlags;
  },
): Promise<Importance> {
  const texts = await encodeFiles(io, model, { files, limit: flags.limit });
  if (texts.every(({ length }) => length === 0)) {
    throw new DataError(
      "Cannot compute importance: the texts have no tokens. Give longer ones",
    );
  }
  const target = await scoredTarget(io, model, flags);
  const { window: context } = windowsFor([target], flags);
  const loading = createProgressBar(io);
  const opened = await openTarget(target, io.files, {
    ...await openOptions(io, target, flags),
    // Sums of other meshes differ in the last bits.
    mesh: { ep: 1 },
    recordSquares: true,
    need: { tokens: context, sequences: 1, context },
    onProgress: loading.update,
  }).finally(loading.stop);
  const bar = createBar(io, "Measuring activations {bar} {percentage} %", 1);
  try {
    return await measureImportance(opened, texts, {
      context,
      onProgress: (done, total) => bar.update(done / total),
    });
  } finally {
    bar.stop();
    await opened.close();
  }
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
