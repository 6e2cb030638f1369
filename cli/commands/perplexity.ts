/** `switchyard perplexity`: the perplexity of a checkpoint on texts, and its divergence from a reference. */

import {
  type Comparison,
  Decoder,
  decoderShape,
  type Mean,
  openTarget,
  openTokenizer,
  perplexityOf,
  type Score,
  type ScoredModel,
  scoreTexts,
  type Target,
} from "../../engine/mod.ts";
import { DataError } from "../../spec/mod.ts";
import type { DeviceFlags, PlanFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { createBar, createProgressBar } from "../progress.ts";
import { requireTokenizer } from "../prompts.ts";
import { readTextFile } from "../text_files.ts";
import { UsageError } from "../flags/values.ts";
import { openOptions, targetOf } from "./options.ts";

/** Flags of `perplexity`. */
export interface PerplexityFlags extends PlanFlags, DeviceFlags {
  readonly window?: number;
  readonly stride?: number;
  readonly limit?: number;
  readonly against?: string;
  readonly json?: boolean;
}

/** Default number of tokens per window. The positions of the model limit it. */
const WINDOW = 2048;

/** Scores the texts of files, and prints perplexity and divergence. */
export async function perplexityCommand(
  base: CliIo,
  name: string,
  { files, flags }: {
    readonly files: readonly string[];
    readonly flags: PerplexityFlags;
  },
): Promise<number> {
  if (flags.devices === "mpi") {
    throw new UsageError(
      "Cannot use perplexity with --devices mpi: texts are scored in one process. Leave --devices out",
    );
  }
  const located = await locate(base, name, flags);
  const { against } = flags;
  const other = against === undefined ? undefined : await locate(base, against);
  const texts = await encodeFiles(located.io, located.model, {
    files,
    limit: flags.limit,
  });
  const measured = await measure(located.io, {
    models: [located.model, ...other ? [other.model] : []],
    texts,
    flags,
  });
  await base.out(
    flags.json
      ? `${JSON.stringify(documentOf(measured), null, 2)}\n`
      : scoreText(measured),
  );
  return 0;
}

/**
 * Encodes files with the tokenizer of a checkpoint, one text per file. `limit` is the maximum number of tokens per
 * file.
 */
export async function encodeFiles(
  io: CliIo,
  folder: string,
  { files, limit = Infinity }: {
    readonly files: readonly string[];
    readonly limit?: number | undefined;
  },
): Promise<number[][]> {
  const tokenizer = requireTokenizer(await openTokenizer(folder, io.files));
  try {
    const texts: number[][] = [];
    for (const file of files) {
      let text = "";
      for await (const chunk of readTextFile(file, io.files)) text += chunk;
      texts.push((await tokenizer.encode(text)).slice(0, limit));
    }
    return texts;
  } finally {
    tokenizer.close();
  }
}

/** The checkpoint that a path names. Throws DataError for anything else. */
export async function scoredTarget(
  io: CliIo,
  model: string,
  flags: PlanFlags,
): Promise<Extract<Target, { readonly kind: "checkpoint" }>> {
  const target = await targetOf(io, model, flags);
  if (target.kind === "checkpoint") return target;
  throw new DataError(
    `Cannot score texts with '${model}': it is no checkpoint folder. Give a folder with config.json and safetensors files`,
  );
}

/** Tokens of windows, and their distance. Throws DataError if the models have too few positions. */
export function windowsFor(
  targets: readonly Extract<Target, { readonly kind: "checkpoint" }>[],
  flags: Pick<PerplexityFlags, "maxContext" | "window" | "stride">,
): { readonly window: number; readonly stride: number } {
  const positions = Math.min(
    flags.maxContext ?? Infinity,
    ...targets.map(({ checkpoint }) =>
      checkpoint.published.decoder.maxPositions
    ),
  );
  const { window = Math.min(WINDOW, positions) } = flags;
  const { stride = Math.ceil(window / 2) } = flags;
  if (window > positions || stride > window) {
    throw new DataError(
      window > positions
        ? `Cannot use windows of ${window} tokens: the model has ${positions} positions. Use smaller ones`
        : `Cannot use a stride of ${stride} with windows of ${window} tokens: tokens between windows would be left out. Use a smaller one`,
    );
  }
  return { window, stride };
}

/** The measured scores, and the windows that they were measured in. */
export interface Measured extends Score {
  readonly window: number;
  readonly stride: number;
}

/** Scores texts with the first of one or two checkpoints. The second is the reference. */
export async function measure(
  io: CliIo,
  { models, texts, flags }: {
    readonly models: readonly string[];
    readonly texts: readonly (readonly number[])[];
    readonly flags: PerplexityFlags;
  },
): Promise<Measured> {
  const opened: { close(): Promise<void> }[] = [];
  const targets = [];
  for (const model of models) {
    targets.push(await scoredTarget(io, model, flags));
  }
  const { window, stride } = windowsFor(targets, flags);
  try {
    const loaded: ScoredModel[] = [];
    for (const target of targets) {
      const bar = createProgressBar(io);
      const one = await openTarget(target, io.files, {
        ...await openOptions(io, target, flags),
        need: { tokens: window, sequences: 1, context: window },
        onProgress: bar.update,
      }).finally(bar.stop);
      opened.push(one);
      const { session, plan } = one;
      loaded.push({
        session,
        decoder: new Decoder(session, decoderShape(plan)!),
      });
    }
    const [model, against] = loaded;
    const bar = createBar(io, "Scoring {bar} {percentage} %", 1);
    const score = await scoreTexts(model!, texts, {
      context: window,
      stride,
      ...against ? { against } : {},
      onProgress: (done, total) => bar.update(done / total),
    }).finally(bar.stop);
    return { ...score, window, stride };
  } finally {
    for (const one of opened) await one.close();
  }
}

/** Formats the measurement as JSON. */
export function documentOf({ nats, comparison, ...sizes }: Measured): object {
  return {
    ...sizes,
    tokens: nats.count,
    perplexity: perplexityOf(nats),
    nats: { mean: nats.mean, error: nats.error },
    ...comparison === undefined ? {} : {
      against: {
        perplexity: perplexityOf(comparison.reference),
        change: changeOf(comparison),
        divergence: comparison.divergence,
        sameToken: comparison.sameToken,
        sameExperts: comparison.sameExperts ?? null,
      },
    },
  };
}

/** Formats the measurement as lines of text. */
export function scoreText(
  { nats, comparison, window, stride }: Measured,
): string {
  const lines = [
    `perplexity ${
      perplexityText(nats)
    } over ${nats.count} tokens, windows of ${window}, stride ${stride}`,
  ];
  if (comparison) {
    const { reference, divergence, sameToken, sameExperts } = comparison;
    const change = changeOf(comparison);
    lines.push(
      `reference  ${perplexityText(reference)}, change ${
        change.value < 0 ? "" : "+"
      }${(100 * change.value).toFixed(3)} +/- ${
        (100 * change.error).toFixed(3)
      } %`,
      `divergence ${divergence.mean.toExponential(3)} +/- ${
        divergence.error.toExponential(1)
      } nats per token (KL), largest ${divergence.largest.toExponential(1)}`,
      `agreement  ${percent(sameToken)} of the likeliest tokens${
        sameExperts === undefined
          ? ""
          : `, ${percent(sameExperts)} of the chosen experts`
      }`,
    );
  }
  return `${lines.join("\n")}\n`;
}

/** Relative change of perplexity, and its error. */
function changeOf(
  { change: { mean, error } }: Comparison,
): { readonly value: number; readonly error: number } {
  return { value: Math.expm1(mean), error: Math.exp(mean) * error };
}

function perplexityText(nats: Mean): string {
  const { value, error } = perplexityOf(nats);
  return `${value.toFixed(4)} +/- ${error.toFixed(4)}`;
}

function percent(part: number): string {
  return `${(100 * part).toFixed(2)} %`;
}
