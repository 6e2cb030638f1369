/** `switchyard chat`: a conversation in the terminal, one message per line. */

import { createInterface } from "node:readline";
import {
  candidatesOf,
  type ChatMessage,
  Decoder,
  decoderShape,
  generate,
  openChatTemplate,
  openTarget,
  openTokenizer,
} from "../../engine/mod.ts";
import { DataError } from "../../spec/mod.ts";
import type { DeviceFlags, PlanFlags } from "../flags/flags.ts";
import { GeneratedTexts } from "../generated_text.ts";
import {
  checkSampling,
  type SamplingFlags,
  samplingOf,
} from "../flags/generation.ts";
import { statsOf, statsText } from "../generation_stats.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { createProgressBar } from "../progress.ts";
import { encodeMessages, requireTokenizer } from "../prompts.ts";
import { UsageError } from "../flags/values.ts";
import { openOptions, targetOf } from "./options.ts";

/** Default of new tokens per answer. The flags and generation_config.json override it. */
const NEW_TOKENS = 1024;

/** Default number of positions of a conversation. */
const CONTEXT = 4096;

/** Remedies of conversations that a template cannot format. */
const REMEDIES = {
  missing: "Give the complete text to 'switchyard generate'",
  failed:
    "Leave out --system if it takes none, or give the complete text to 'switchyard generate'",
};

/** Flags of `chat`. */
export interface ChatFlags extends PlanFlags, DeviceFlags, SamplingFlags {
  readonly system?: string;
}

/**
 * Answers messages until the input ends. `/clear` starts a new conversation, `/exit` ends the command, and Ctrl-C ends
 * an answer.
 */
export async function chatCommand(
  base: CliIo,
  name: string,
  flags: ChatFlags,
): Promise<number> {
  checkSampling(flags);
  if (flags.devices === "mpi") {
    throw new UsageError(
      "Cannot chat with ranks in separate processes: only one of them has standard input. Use --devices shared",
    );
  }
  const { io, model: folder } = await locate(base, name, flags);
  const target = await targetOf(io, folder, flags);
  if (target.kind !== "checkpoint") {
    throw new DataError(
      `Cannot chat with '${folder}': it is no checkpoint folder. Give a folder with config.json and safetensors files`,
    );
  }
  const tokenizer = requireTokenizer(await openTokenizer(folder, io.files));
  const chat = await openChatTemplate(folder, io.files, { remedies: REMEDIES });
  const { maxNewTokens = NEW_TOKENS, stop } = target.checkpoint;
  const bar = createProgressBar(io);
  const opened = await openTarget(target, io.files, {
    ...await openOptions(io, target, flags),
    next: { candidates: candidatesOf(samplingOf(flags)) },
    need: { tokens: 512, sequences: 1, context: CONTEXT },
    onProgress: bar.update,
  }).finally(bar.stop);
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const first: ChatMessage[] = flags.system === undefined
    ? []
    : [{ role: "system", content: flags.system }];
  let messages = [...first];
  let cached: readonly number[] = [];
  const lines = createInterface({ input: io.input });
  const ask = () => io.terminal ? io.out("> ") : Promise.resolve();
  try {
    await ask();
    for await (const line of lines) {
      if (line === "/exit") break;
      if (line === "/clear") messages = [...first];
      else if (line.trim() !== "") {
        messages.push({ role: "user", content: line });
        const prompt = await encodeMessages(messages, tokenizer, chat);
        if (prompt.length >= decoder.shape.maxContext) {
          io.err(
            `Cannot continue: the conversation has ${prompt.length} tokens, and the context has ${decoder.shape.maxContext}. Start a new conversation with /clear, or raise --max-context`,
          );
          messages.pop();
          await ask();
          continue;
        }
        const texts = new GeneratedTexts(tokenizer, flags.stop ?? []);
        let interrupted = false;
        const release = io.onInterrupt(() => interrupted = true);
        const result = await generate(decoder, [prompt], {
          ...samplingOf(flags),
          stop,
          cached,
          now: io.now,
          maxNewTokens: flags.maxNewTokens ?? maxNewTokens,
          onToken: async (sequence, token) => {
            const { piece, stopped } = await texts.push(sequence, token);
            if (piece !== "") await io.out(piece);
            return stopped || interrupted ? "stop" : undefined;
          },
        }).finally(release);
        await io.out(`${await texts.end(0)}\n`);
        if (flags.stats) io.err(statsText(statsOf(result)));
        messages.push({ role: "assistant", content: texts.text(0) });
        // The last token is not in the cache.
        cached = [...prompt, ...result.sequences[0]!.tokens.slice(0, -1)];
      }
      await ask();
    }
    return 0;
  } finally {
    lines.close();
    chat.close();
    tokenizer.close();
    await opened.close();
  }
}
