/** Prompts as they are given: texts, files, standard input, token ids; and what a checkpoint makes of them. */

import { text as readAll } from "node:stream/consumers";
import type { ChatMessage, ChatTemplate, Tokenizer } from "../engine/mod.ts";
import { DataError } from "../spec/errors.ts";
import type { Prompt } from "./flags.ts";
import type { CliIo } from "./io.ts";
import { UsageError } from "./values.ts";

/** A prompt that has been read. */
export type GivenPrompt = { readonly text: string } | {
  readonly tokens: readonly number[];
};

/** Read the texts of prompts. `-` is standard input, to its end; one line break at the end of it or of a file is left out. */
export async function readPrompts(
  io: Pick<CliIo, "files" | "input">,
  prompts: readonly Prompt[],
): Promise<GivenPrompt[]> {
  const found: GivenPrompt[] = [];
  const inputs = prompts.filter((prompt) =>
    "text" in prompt && prompt.text === "-"
  );
  if (inputs.length > 1) {
    throw new UsageError(
      "Cannot use '-' for two prompts: standard input is one. Give --prompt-file FILE for the others",
    );
  }
  for (const prompt of prompts) {
    if ("file" in prompt) {
      found.push({ text: withoutBreak(await io.files.readText(prompt.file)) });
    } else if ("lines" in prompt) {
      found.push(...await readLines(io, prompt.lines));
    } else if (inputs.includes(prompt)) {
      found.push({ text: withoutBreak(await readAll(io.input)) });
    } else found.push(prompt);
  }
  return found;
}

/** A prompt on each line of a file; blank lines are skipped. */
async function readLines(
  { files }: Pick<CliIo, "files">,
  file: string,
): Promise<GivenPrompt[]> {
  const lines = (await files.readText(file)).split(/\r?\n/)
    .filter((line) => line.trim() !== "");
  if (lines.length > 0) return lines.map((text) => ({ text }));
  throw new DataError(
    `Cannot read prompts from '${file}': all of its lines are blank. Give a prompt on each line`,
  );
}

function withoutBreak(text: string): string {
  return text.replace(/\r?\n$/, "");
}

/** Token ids of a prompt. */
export async function encodePrompt(
  prompt: GivenPrompt,
  tokenizer: Tokenizer | undefined,
): Promise<number[]> {
  return "tokens" in prompt
    ? [...prompt.tokens]
    : await requireTokenizer(tokenizer).encode(prompt.text);
}

/** Token ids of a conversation, up to where the assistant begins. */
export async function encodeMessages(
  messages: readonly ChatMessage[],
  tokenizer: Tokenizer | undefined,
  chat: ChatTemplate,
): Promise<number[]> {
  const text = await chat.render(messages);
  return await requireTokenizer(tokenizer).encodeBare(text);
}

/** The messages of a conversation that begins with these. */
export function firstMessages(
  system: string | undefined,
  text: string,
): ChatMessage[] {
  return [
    ...system === undefined
      ? []
      : [{ role: "system" as const, content: system }],
    { role: "user", content: text },
  ];
}

/** The tokenizer, or the complaint. */
export function requireTokenizer(tokenizer: Tokenizer | undefined): Tokenizer {
  if (tokenizer) return tokenizer;
  throw new DataError(
    "Cannot read a prompt: the checkpoint has no tokenizer.json. Give token ids with --tokens",
  );
}
