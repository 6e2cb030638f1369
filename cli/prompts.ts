/** Prompts from texts, files, standard input or token ids, and their encoding. */

import { buffer as readAll } from "node:stream/consumers";
import {
  type ChatMessage,
  type ChatTemplate,
  type FileSystem,
  openChatTemplate,
  type Tokenizer,
} from "../engine/mod.ts";
import { DataError, invariant } from "../spec/errors.ts";
import type { Prompt } from "./flags/flags.ts";
import type { CliIo } from "./io.ts";
import { UsageError } from "./flags/values.ts";
import { readWholeText } from "./text_files.ts";

/** A prompt after reading. */
export type GivenPrompt = { readonly text: string } | {
  readonly tokens: readonly number[];
};

/**
 * Reads the texts of prompts. `-` is standard input, to its end. One line break at the end of standard input or of a
 * file is removed. Throws DataError for text that is not UTF-8.
 */
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
      const text = await readWholeText(prompt.file, io.files);
      found.push({ text: withoutBreak(text) });
    } else if ("lines" in prompt) {
      found.push(...await readLines(io, prompt.lines));
    } else if (inputs.includes(prompt)) {
      const text = decodeInput(await readAll(io.input));
      found.push({ text: withoutBreak(text) });
    } else found.push(prompt);
  }
  return found;
}

/** Reads one prompt per line of a file. Blank lines are skipped. */
async function readLines(
  { files }: Pick<CliIo, "files">,
  file: string,
): Promise<GivenPrompt[]> {
  const lines = (await readWholeText(file, files)).split(/\r?\n/)
    .filter((line) => line.trim() !== "");
  if (lines.length > 0) return lines.map((text) => ({ text }));
  throw new DataError(
    `Cannot read prompts from '${file}': all of its lines are blank. Give a prompt on each line`,
  );
}

/** The text of standard input. */
function decodeInput(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new DataError(
      "Cannot read standard input: it is no text in UTF-8. Convert it",
    );
  }
}

function withoutBreak(text: string): string {
  return text.replace(/\r?\n$/, "");
}

/** Encodes a prompt as token ids. */
async function encodePrompt(
  prompt: GivenPrompt,
  tokenizer: Tokenizer | undefined,
): Promise<number[]> {
  return "tokens" in prompt
    ? [...prompt.tokens]
    : await requireTokenizer(tokenizer).encode(prompt.text);
}

/** Encodes a conversation as token ids, up to the start of the assistant's answer. */
export async function encodeMessages(
  messages: readonly ChatMessage[],
  tokenizer: Tokenizer | undefined,
  chat: ChatTemplate,
): Promise<number[]> {
  const text = await chat.render(messages);
  return await requireTokenizer(tokenizer).encodeBare(text);
}

/** Encodes all prompts, as plain text or as messages. */
export async function encodePrompts(
  io: CliIo,
  { folder, tokenizer, flags }: {
    readonly folder: string;
    readonly tokenizer: Tokenizer | undefined;
    readonly flags: {
      readonly prompts: readonly Prompt[];
      readonly chat?: boolean;
      readonly system?: string;
    };
  },
): Promise<number[][]> {
  const chat = flags.chat
    ? await openChatTemplate(folder, io.files)
    : undefined;
  const prompts: number[][] = [];
  for (const prompt of await readPrompts(io, flags.prompts)) {
    if (!chat) {
      prompts.push(await encodePrompt(prompt, tokenizer));
      continue;
    }
    invariant("text" in prompt, "token ids in a conversation");
    const messages = firstMessages(flags.system, prompt.text);
    prompts.push(await encodeMessages(messages, tokenizer, chat));
  }
  chat?.close();
  return prompts;
}

/** Returns the first messages of a conversation. */
function firstMessages(
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

/** Throws DataError before weights are loaded if a folder to serve has no tokenizer. */
export async function checkTokenizer(
  folder: string,
  files: FileSystem,
): Promise<void> {
  if (await files.stat(files.join(folder, "tokenizer.json"))) return;
  throw new DataError(
    `Cannot serve '${folder}': it has no tokenizer.json. Copy one there`,
  );
}

/** Returns the tokenizer, or throws an error. */
export function requireTokenizer(tokenizer: Tokenizer | undefined): Tokenizer {
  if (tokenizer) return tokenizer;
  throw new DataError(
    "Cannot read a prompt: the checkpoint has no tokenizer.json. Give token ids with --tokens",
  );
}
