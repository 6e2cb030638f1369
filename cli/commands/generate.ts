/** `switchyard generate`: continue prompts with a checkpoint. */

import {
  candidatesOf,
  Decoder,
  decoderShape,
  generate,
  type GeneratedSequence,
  openTarget,
  openTokenizer,
  receiptOf,
} from "../../engine/mod.ts";
import { DataError } from "../../spec/mod.ts";
import { checkGenerate, type GenerateFlags } from "../flags/generate.ts";
import { samplingOf } from "../flags/generation.ts";
import { nextPerSequence } from "../flags/speculation.ts";
import { finishLine } from "../flags/values.ts";
import { GenerateOutput } from "../generate_output.ts";
import { statsOf } from "../generation_stats.ts";
import type { CliIo } from "../io.ts";
import { joinAsRank } from "../launch/rank.ts";
import { locate } from "../located.ts";
import { createProgressBar } from "../progress.ts";
import { encodePrompts } from "../prompts.ts";
import { writeReceipt } from "../receipts.ts";
import { openSchema } from "../schema.ts";
import {
  draftedOptions,
  type OpenedSpeculation,
  openSpeculation,
} from "../speculation.ts";
import { startWatch } from "../watch.ts";
import { openOptions, targetOf } from "./options.ts";

/** Default of new tokens. The flags and generation_config.json override it. */
const NEW_TOKENS = 128;

/** Default upper bound of sequences in one batch. Other prompts wait. */
const MAX_SEQUENCES = 64;

/** Continues prompts and prints the new text while it is generated. Several prompts are printed after all are done. */
export async function generateCommand(
  base: CliIo,
  name: string,
  flags: GenerateFlags,
): Promise<number> {
  checkGenerate(flags);
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
    const output = new GenerateOutput(io, {
      flags,
      tokenizer,
      prompts: prompts.length,
      prints: opened.rank === 0,
      watch,
    });
    const result = await generate(decoder, prompts, {
      ...sampling,
      maxNewTokens,
      stop: target.checkpoint.stop,
      speculation: draft.speculation,
      receipt: flags.receipt !== undefined,
      now: io.now,
      ...schema ? { grammars: await schema.start(prompts.length) } : {},
      ...output.follows
        ? {
          onToken: (sequence, token, known) =>
            output.push(sequence, token, known),
        }
        : {},
    });
    if (opened.rank > 0) {
      await opened.finish();
      return 0;
    }
    schema?.check();
    const { sequences } = result;
    const loadMs = loaded - started;
    const stats = statsOf(result, {
      loadMs,
      read: [startedRead, loadedRead, io.bytesRead()],
      streaming: session.statistics().streaming,
    });
    await output.end(result, { loadMs, stats });
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
    const { maxPositions } = target.checkpoint.published.decoder;
    sayEndings(io, sequences, {
      context: plan.axes["context"]?.size ?? 0,
      maxPositions,
    });
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

function sayEndings(
  io: CliIo,
  sequences: readonly GeneratedSequence[],
  { context, maxPositions }: {
    readonly context: number;
    readonly maxPositions: number;
  },
): void {
  const remedy = context < maxPositions
    ? "Raise --max-context for more"
    : `The model has ${maxPositions} positions. Use a shorter prompt for more`;
  sequences.forEach(({ ending }, i) => {
    if (ending !== "context") return;
    io.err(
      `Sequence ${
        i + 1
      } stopped at the end of its context of ${context} tokens. ${remedy}`,
    );
  });
}
