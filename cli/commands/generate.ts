/** `switchyard generate`: continue prompts with a checkpoint. */

import {
  candidatesOf,
  Decoder,
  decoderShape,
  generate,
  type Generated,
  type GeneratedSequence,
  type Logprobs,
  openTarget,
  openTokenizer,
  receiptOf,
  type Tokenizer,
} from "../../engine/mod.ts";
import { DataError } from "../../spec/mod.ts";
import type { DeviceFlags, PlanFlags, Prompt } from "../flags/flags.ts";
import { GeneratedTexts } from "../generated_text.ts";
import {
  checkSampling,
  type SamplingFlags,
  samplingOf,
} from "../flags/generation.ts";
import {
  type GenerationStats,
  statsOf,
  statsText,
} from "../generation_stats.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { createProgressBar } from "../progress.ts";
import {
  draftedOptions,
  type OpenedSpeculation,
  openSpeculation,
} from "../speculation.ts";
import {
  checkSpeculation,
  nextPerSequence,
  type SpeculationFlags,
} from "../flags/speculation.ts";
import { encodePrompts } from "../prompts.ts";
import { finishLine, UsageError } from "../flags/values.ts";
import { startWatch } from "../watch.ts";
import { joinAsRank } from "../launch/rank.ts";
import { writeReceipt } from "../receipts.ts";
import { openSchema } from "../schema.ts";
import { openOptions, targetOf } from "./options.ts";

/** Default of new tokens. The flags and generation_config.json override it. */
const NEW_TOKENS = 128;

/** Default upper bound of sequences in one batch. Other prompts wait. */
const MAX_SEQUENCES = 64;

/** Flags of `generate`. */
export interface GenerateFlags
  extends PlanFlags, DeviceFlags, SamplingFlags, SpeculationFlags {
  readonly prompts: readonly Prompt[];
  readonly chat?: boolean;
  readonly system?: string;
  readonly logprobs?: number;
  readonly json?: boolean;
  readonly jsonl?: boolean;
  readonly watch?: boolean;
  readonly receipt?: string;
  /** A file with a JSON Schema, which the new texts follow. */
  readonly jsonSchema?: string;
}

/** Continues prompts and prints the new text while it is generated. Several prompts are printed after all are done. */
export async function generateCommand(
  base: CliIo,
  name: string,
  flags: GenerateFlags,
): Promise<number> {
  checkFlags(flags);
  const started = base.now();
  const startedRead = base.bytesRead();
  if (flags.devices === "mpi") await joinAsRank(base, flags);
  const { io, model: folder } = await locate(base, name, flags);
  const target = await targetOf(io, folder, flags);
  if (target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot generate from '${folder}': it is no checkpoint folder. Give a folder with config.json and safetensors files`,
    );
  }
  const tokenizer = await openTokenizer(folder, io.files);
  const prompts = await encodePrompts(io, { folder, tokenizer, flags });
  const maxNewTokens = flags.maxNewTokens ?? target.checkpoint.maxNewTokens ??
    NEW_TOKENS;
  const { stop = [], logprobs } = flags;
  const sampling = {
    ...samplingOf(flags),
    ...logprobs === undefined ? {} : { logprobs },
  };
  const lengths = prompts.map(({ length }) => length + maxNewTokens);
  const sequenceCount = Math.min(prompts.length, MAX_SEQUENCES);
  const perSequence = nextPerSequence(flags);
  const schema = flags.jsonSchema === undefined
    ? undefined
    : await openSchema(io, flags.jsonSchema, {
      folder,
      stop: target.checkpoint.stop,
      vocabulary: target.checkpoint.published.decoder.vocabulary,
    });
  const { companions, hidden } = draftedOptions(flags, target, io.files);
  const bar = createProgressBar(io);
  const watch = await startWatch(io, `Text from ${folder}`, flags);
  const opened = await openTarget(target, io.files, {
    ...await openOptions(io, target, flags),
    equal: {
      "set of prompts": JSON.stringify([prompts, maxNewTokens]),
      "way to choose tokens": JSON.stringify([sampling, stop]),
    },
    next: {
      candidates: schema ? undefined : candidatesOf(sampling),
      normalizer: logprobs !== undefined,
      logits: flags.receipt !== undefined,
      perSequence,
      hidden,
    },
    companions,
    need: {
      tokens: Math.max(
        prompts.reduce((n, prompt) => n + prompt.length, 0),
        sequenceCount * perSequence,
      ),
      sequences: sequenceCount,
      context: Math.max(...lengths),
      lengths,
    },
    onProgress: (progress) => {
      bar.update(progress);
      watch.send("progress", progress);
    },
  }).finally(bar.stop);
  const { plan, session } = opened;
  let draft: OpenedSpeculation | undefined;
  try {
    const decoder = new Decoder(session, decoderShape(plan)!);
    draft = await openSpeculation(io, flags, {
      decoder,
      companions: opened.companions,
      alone: flags.devices !== "mpi",
    });
    const loaded = io.now();
    const loadedRead = io.bytesRead();
    const speaks = opened.rank === 0;
    const streams = !flags.json && !flags.jsonl && prompts.length === 1;
    const texts = new GeneratedTexts(tokenizer, stop);
    const line = (value: object) => io.out(`${JSON.stringify(value)}\n`);
    const follows = streams || flags.jsonl || flags.watch || stop.length > 0;
    const onToken = async (
      sequence: number,
      token: number,
      known: Logprobs | undefined,
    ) => {
      const { piece, stopped } = await texts.push(sequence, token);
      if (speaks && streams && piece !== "") await io.out(piece);
      watch.send("text", { sequence, piece, ms: io.now() - loaded });
      if (speaks && flags.jsonl) {
        const more = known ? await logprobsJson(known, tokenizer) : {};
        await line({ sequence, token, text: piece, ...more });
      }
      return stopped ? "stop" as const : undefined;
    };
    const result = await generate(decoder, prompts, {
      ...sampling,
      maxNewTokens,
      stop: target.checkpoint.stop,
      speculation: draft.speculation,
      receipt: flags.receipt !== undefined,
      now: io.now,
      ...schema ? { grammars: await schema.start(prompts.length) } : {},
      ...follows ? { onToken } : {},
    });
    if (opened.rank > 0) {
      await opened.finish();
      return 0;
    }
    schema?.check();
    const { sequences } = result;
    if (follows) {
      for (const i of sequences.keys()) {
        const rest = await texts.end(i);
        if (streams) await io.out(rest);
        if (flags.jsonl) {
          await line({ sequence: i, text: rest, ending: sequences[i]!.ending });
        }
      }
    }
    const textOf = async (i: number) =>
      follows ? texts.text(i) : await completeText(sequences[i]!, tokenizer);
    const loadMs = loaded - started;
    const stats = statsOf(result, {
      loadMs,
      read: [startedRead, loadedRead, io.bytesRead()],
      streaming: session.statistics().streaming,
    });
    if (flags.json) {
      await io.out(
        await jsonText(result, { loadMs, stats, tokenizer, textOf, flags }),
      );
    } else if (flags.jsonl) {
      if (flags.stats) await line({ stats });
    } else if (streams) await io.out("\n");
    else {
      for (const i of sequences.keys()) {
        await io.out(`[${i + 1}] ${await textOf(i)}\n`);
      }
    }
    if (flags.stats && !flags.json && !flags.jsonl) {
      io.err(statsText(stats));
    }
    if (flags.receipt !== undefined) {
      await writeReceipt(io, flags.receipt, {
        model: name,
        checkpoint: target.checkpoint,
        opened,
        flags,
        sequences: sequences.map((sequence, stream) =>
          receiptOf(sequence, { ...sampling, stream })
        ),
      });
    }
    sayEndings(io, sequences, plan.axes["context"]?.size ?? 0);
    await opened.finish();
    if (flags.job !== undefined) {
      await io.out(`${finishLine(flags.job)}\n`);
    }
    await watch.end("All texts are done.");
    return 0;
  } finally {
    tokenizer?.close();
    schema?.close();
    await draft?.close();
    await opened.close();
  }
}

function checkFlags(flags: GenerateFlags): void {
  if (flags.prompts.length === 0) {
    throw new UsageError(
      "Cannot generate: there is no prompt. Give --prompt TEXT (- for standard input), --prompt-file FILE or --tokens IDS",
    );
  }
  const has = (kind: string) => flags.prompts.some((prompt) => kind in prompt);
  if (has("lines") && has("file")) {
    throw new UsageError(
      "Cannot use --prompts with --prompt-file: one has a prompt on each line, the other is a prompt. Give one of them",
    );
  }
  if (flags.chat && has("tokens")) {
    throw new UsageError(
      "Cannot use --tokens with --chat: messages are texts. Give --prompt TEXT",
    );
  }
  if (flags.system !== undefined && !flags.chat) {
    throw new UsageError(
      "Cannot use --system without --chat: there is no conversation. Give --chat",
    );
  }
  if (flags.json && flags.jsonl) {
    throw new UsageError(
      "Cannot use --json with --jsonl: each is the complete output. Give one of them",
    );
  }
  if (flags.logprobs !== undefined && !flags.json && !flags.jsonl) {
    throw new UsageError(
      "Cannot use --logprobs without --json or --jsonl: text output does not include them. Give one of them",
    );
  }
  const standard = flags.prompts.some((prompt) =>
    "text" in prompt && prompt.text === "-"
  );
  if (flags.devices === "mpi" && standard) {
    throw new UsageError(
      "Cannot read '-' with ranks in separate processes: only one of them has standard input. Give --prompt-file FILE",
    );
  }
  if (flags.jsonSchema !== undefined && flags.devices === "mpi") {
    throw new UsageError(
      "Cannot use --json-schema with ranks in separate processes: each would restrict tokens for itself. Leave --devices out, or use 'switchyard serve'",
    );
  }
  if (flags.jsonSchema !== undefined && flags.receipt !== undefined) {
    throw new UsageError(
      "Cannot use --json-schema with --receipt: a replay does not restrict tokens to a grammar. Leave out one of them",
    );
  }
  if (flags.receipt !== undefined && flags.numerics === "fast") {
    throw new UsageError(
      "Cannot use --receipt with --numerics fast: bits then depend on the mesh. Leave out one of them",
    );
  }
  checkSampling(flags);
  checkSpeculation(flags);
}

async function completeText(
  { tokens }: GeneratedSequence,
  tokenizer: Tokenizer | undefined,
): Promise<string> {
  return tokenizer ? await tokenizer.decode(tokens) : tokens.join(",");
}

/** Returns the JSON document of all results. */
async function jsonText(
  result: Generated,
  { loadMs, stats, tokenizer, textOf, flags }: {
    readonly loadMs: number;
    readonly stats: GenerationStats;
    readonly tokenizer: Tokenizer | undefined;
    readonly textOf: (sequence: number) => Promise<string>;
    readonly flags: GenerateFlags;
  },
): Promise<string> {
  const { prefillMs, decodeMs, decodeSteps } = result;
  const sequences: object[] = [];
  for (const [i, sequence] of result.sequences.entries()) {
    const logprobs: object[] = [];
    for (const known of sequence.logprobs ?? []) {
      logprobs.push({
        token: known.token,
        ...await logprobsJson(known, tokenizer),
      });
    }
    sequences.push({
      promptTokens: sequence.prompt,
      tokens: sequence.tokens,
      text: tokenizer ? await textOf(i) : null,
      ending: sequence.ending,
      ...flags.logprobs === undefined ? {} : { logprobs },
    });
  }
  const document = {
    sequences,
    timing: { loadMs, prefillMs, decodeMs, decodeSteps },
    ...flags.stats ? { stats } : {},
  };
  return `${JSON.stringify(document, null, 2)}\n`;
}

async function logprobsJson(
  { logprob, top }: Logprobs,
  tokenizer: Tokenizer | undefined,
): Promise<object> {
  const likeliest: object[] = [];
  for (const { token, logprob } of top) {
    const text = tokenizer ? { text: await tokenizer.decode([token]) } : {};
    likeliest.push({ token, ...text, logprob });
  }
  return { logprob, top: likeliest };
}

function sayEndings(
  io: CliIo,
  sequences: readonly GeneratedSequence[],
  context: number,
): void {
  sequences.forEach(({ ending }, i) => {
    if (ending !== "context") return;
    io.err(
      `Sequence ${
        i + 1
      } stopped at the end of its context of ${context} tokens. Raise --max-context for more`,
    );
  });
}
