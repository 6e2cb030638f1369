/** `switchyard generate`: continue prompts with a checkpoint. */

import {
  candidatesOf,
  type ChatTemplate,
  Decoder,
  decoderShape,
  generate,
  type GeneratedSequence,
  type GenerateOptions,
  loadTarget,
  openChatTemplate,
  openTarget,
  openTokenizer,
  TextStream,
  type Tokenizer,
} from "../../engine/mod.ts";
import { DataError, invariant } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import type { DeviceFlags, PlanFlags, Prompt } from "../flags.ts";
import { createProgressBar } from "../progress.ts";
import { finishLine, UsageError } from "../values.ts";
import { joinAsRank } from "../rank.ts";
import { openOptions } from "./options.ts";

/** New tokens where neither the flags nor generation_config.json say. */
const NEW_TOKENS = 128;

/** Flags of `generate`. */
export interface GenerateFlags extends PlanFlags, DeviceFlags {
  readonly prompts: readonly Prompt[];
  readonly chat?: boolean;
  readonly system?: string;
  readonly maxNewTokens?: number;
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly seed?: number;
  readonly json?: boolean;
}

/** Continue prompts and print the new text as it grows; several prompts are printed when all are done. */
export async function generateCommand(
  io: CliIo,
  folder: string,
  flags: GenerateFlags,
): Promise<number> {
  checkFlags(flags);
  const started = io.now();
  if (flags.devices === "mpi") await joinAsRank(io, flags);
  const target = await loadTarget(folder, io.files);
  if (target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot generate from '${folder}': it is no checkpoint folder. Give a folder with config.json and safetensors files`,
    );
  }
  const tokenizer = await openTokenizer(folder, io.files);
  const chat = flags.chat && await openChatTemplate(folder, io.files);
  const prompts: number[][] = [];
  for (const prompt of flags.prompts) {
    prompts.push(
      await (chat
        ? encodeChat(prompt, tokenizer, { chat, system: flags.system })
        : encode(prompt, tokenizer)),
    );
  }
  if (chat) chat.close();
  const maxNewTokens = flags.maxNewTokens ?? target.checkpoint.maxNewTokens ??
    NEW_TOKENS;
  const bar = createProgressBar(io);
  const opened = await openTarget(target, io.files, {
    ...await openOptions(io, target, flags),
    alike: {
      "set of prompts": JSON.stringify([prompts, maxNewTokens]),
      "way to choose tokens": JSON.stringify(samplingOf(flags)),
    },
    next: { candidates: candidatesOf(samplingOf(flags)) },
    need: {
      tokens: prompts.reduce((n, prompt) => n + prompt.length, 0),
      sequences: prompts.length,
      context: Math.max(...prompts.map(({ length }) => length)) + maxNewTokens,
    },
    onProgress: bar.update,
  }).finally(bar.stop);
  const { plan, session } = opened;
  try {
    const loaded = io.now();
    const streams = !flags.json && prompts.length === 1 && opened.rank === 0;
    const printer = new Printer(io, tokenizer);
    const result = await generate(
      new Decoder(session, decoderShape(plan)!),
      prompts,
      {
        ...samplingOf(flags),
        maxNewTokens,
        stop: target.checkpoint.stop,
        now: io.now,
        ...streams
          ? { onToken: (_: number, token: number) => printer.push(token) }
          : {},
      },
    );
    const { sequences, prefillMs, decodeMs, decodeSteps } = result;
    if (opened.rank > 0) {
      await opened.finish();
      return 0;
    }
    if (flags.json) {
      const timing = { loadMs: loaded - started, prefillMs, decodeMs };
      const document = {
        sequences: await Promise.all(
          sequences.map((sequence) => toJson(sequence, tokenizer)),
        ),
        timing: { ...timing, decodeSteps },
      };
      await io.out(`${JSON.stringify(document, null, 2)}\n`);
    } else if (streams) await printer.end();
    else await printAll(io, sequences, tokenizer);
    sayEndings(io, sequences, plan.axes["context"]?.size ?? 0);
    await opened.finish();
    if (flags.job !== undefined) {
      await io.out(`${finishLine(flags.job)}\n`);
    }
    return 0;
  } finally {
    tokenizer?.close();
    await opened.close();
  }
}

function checkFlags(flags: GenerateFlags): void {
  if (flags.prompts.length === 0) {
    throw new UsageError(
      "Cannot generate: there is no prompt. Give --prompt TEXT or --tokens IDS",
    );
  }
  if (flags.chat && flags.prompts.some((prompt) => "tokens" in prompt)) {
    throw new UsageError(
      "Cannot use --tokens with --chat: messages are texts. Give --prompt TEXT",
    );
  }
  if (flags.system !== undefined && !flags.chat) {
    throw new UsageError(
      "Cannot use --system without --chat: there is no conversation. Give --chat",
    );
  }
  const useless = flags.topK !== undefined
    ? "--top-k"
    : flags.topP !== undefined
    ? "--top-p"
    : undefined;
  if (useless && flags.temperature === undefined) {
    throw new UsageError(
      `Cannot use ${useless} without --temperature: tokens are then chosen greedily. Give --temperature`,
    );
  }
}

async function encode(
  prompt: Prompt,
  tokenizer: Tokenizer | undefined,
): Promise<number[]> {
  return "tokens" in prompt
    ? [...prompt.tokens]
    : await requireTokenizer(tokenizer).encode(prompt.text);
}

async function encodeChat(
  prompt: Prompt,
  tokenizer: Tokenizer | undefined,
  { chat, system }: {
    readonly chat: ChatTemplate;
    readonly system: string | undefined;
  },
): Promise<number[]> {
  invariant("text" in prompt, "token ids in a conversation");
  const text = await chat.render([
    ...system === undefined
      ? []
      : [{ role: "system" as const, content: system }],
    { role: "user", content: prompt.text },
  ]);
  return await requireTokenizer(tokenizer).encodeBare(text);
}

function requireTokenizer(tokenizer: Tokenizer | undefined): Tokenizer {
  if (tokenizer) return tokenizer;
  throw new DataError(
    "Cannot read a prompt: the checkpoint has no tokenizer.json. Give token ids with --tokens",
  );
}

function samplingOf(
  { temperature, topK, topP, seed }: GenerateFlags,
): Partial<GenerateOptions> {
  return {
    ...temperature === undefined ? {} : { temperature },
    ...topK === undefined ? {} : { topK },
    ...topP === undefined ? {} : { topP },
    ...seed === undefined ? {} : { seed },
  };
}

/** Prints one sequence as it grows: text, or ids where there is no tokenizer. */
class Printer {
  readonly #io: CliIo;
  readonly #stream: TextStream | undefined;
  #count = 0;

  constructor(io: CliIo, tokenizer: Tokenizer | undefined) {
    this.#io = io;
    this.#stream = tokenizer && new TextStream(tokenizer);
  }

  async push(token: number): Promise<void> {
    const piece = this.#stream
      ? await this.#stream.push(token)
      : `${this.#count === 0 ? "" : ","}${token}`;
    this.#count++;
    if (piece !== "") await this.#io.out(piece);
  }

  async end(): Promise<void> {
    await this.#io.out(`${await this.#stream?.end() ?? ""}\n`);
  }
}

async function printAll(
  io: CliIo,
  sequences: readonly GeneratedSequence[],
  tokenizer: Tokenizer | undefined,
): Promise<void> {
  for (const [i, { tokens }] of sequences.entries()) {
    const text = tokenizer ? await tokenizer.decode(tokens) : tokens.join(",");
    await io.out(`[${i + 1}] ${text}\n`);
  }
}

async function toJson(
  { prompt, tokens }: GeneratedSequence,
  tokenizer: Tokenizer | undefined,
): Promise<object> {
  return {
    prompt_tokens: prompt,
    tokens,
    text: tokenizer ? await tokenizer.decode(tokens) : null,
  };
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
