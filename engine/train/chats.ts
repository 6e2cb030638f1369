/** Conversations as training data: files with one conversation per line, as tokens with weights. */

import { DataError } from "../../spec/errors.ts";
import { JsonError, parseJson } from "../../spec/parse_json.ts";
import {
  type FamilyOption,
  openConfiguration,
  openTokenizer,
} from "../checkpoint/checkpoint.ts";
import {
  type ChatTemplate,
  openChatTemplate,
  type TemplateMessage,
} from "../checkpoint/chat.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem } from "../files.ts";
import { randomNumbers } from "../generation/sampling.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import {
  type Conversation,
  trainedText,
  type TrainOn,
} from "./assistant_text.ts";
import type { Sample } from "./samples.ts";
import { shuffled, type Text } from "./text.ts";

/** A file of conversations. Each line is an object with `messages`, and `tools` if there are any. */
export interface ChatFile {
  /** Its path, for messages. */
  readonly name: string;
  readonly text: Text;
}

/** Options of `openChats`. */
export interface OpenChatsOptions extends FamilyOption {
  readonly data: readonly ChatFile[];
  /** Files of validation conversations. */
  readonly validation?: readonly ChatFile[];
  /** Fraction of the conversations that validate instead. Default: 0. */
  readonly split?: number;
  /** Maximum tokens of a conversation. Longer ones are truncated. */
  readonly length: number;
  /** Tokens with a loss. Default: those of the assistant. */
  readonly trainOn?: TrainOn;
  /** Folder of the tokenizer and the chat template. Default: that of the checkpoint. */
  readonly tokenizer?: string;
  /** Seed of the split. Default: 0. */
  readonly seed?: number;
}

/** Numbers of conversations and tokens in the data. */
export interface ChatReport {
  /** Conversations for training and for validation. */
  readonly samples: number;
  readonly validation: number;
  /** Tokens, and those that are trained. */
  readonly tokens: number;
  readonly trained: number;
  /** Conversations that were too long, and their tokens after the maximum. */
  readonly truncated: number;
  readonly lost: number;
  /** Conversations that are left out because no token of them is trained. */
  readonly untrained: number;
}

/** Conversations as tokens. */
export interface Chats {
  readonly samples: readonly Sample[];
  readonly validation: readonly Sample[];
  readonly report: ChatReport;
  /** Identity of tokens and weights. */
  readonly digest: string;
}

/** How conversations become tokens. */
interface Encoding {
  readonly template: ChatTemplate;
  readonly tokenizer: Tokenizer;
  readonly stop: ReadonlySet<number>;
  readonly trainOn: TrainOn;
}

/**
 * Reads conversations as the tokens that a checkpoint's chat template gives. Throws DataError for a line that is no
 * conversation, or whose trained tokens cannot be found.
 *
 * @example
 * ```ts
 * const chats = await openChats("checkpoint", files, {
 *   data: [{ name: "chats.jsonl", text: () => [lines] }], length: 512,
 * });
 * const metrics = trainCheckpoint("checkpoint", files, { data: chats, … });
 * ```
 */
export async function openChats(
  folder: string,
  files: FileSystem,
  options: OpenChatsOptions,
): Promise<Chats> {
  const { split = 0, seed = 0, trainOn = "assistant" } = options;
  const from = options.tokenizer ?? folder;
  const { stop } = await openConfiguration(folder, files, options);
  const tokenizer = await openTokenizer(from, files);
  if (!tokenizer) {
    throw new DataError(
      `Cannot train on conversations: '${from}' has no tokenizer.json. Copy one there, or give the folder of another with --tokenizer`,
    );
  }
  const template = await openChatTemplate(from, files, {
    mark: true,
    remedies: {
      missing: "Give the folder of one with --tokenizer",
      failed: "Check the messages, or the template",
    },
  }).catch((error) => {
    tokenizer.close();
    throw error;
  });
  const encoding = { template, tokenizer, stop, trainOn };
  const report = {
    samples: 0,
    validation: 0,
    tokens: 0,
    trained: 0,
    truncated: 0,
    lost: 0,
    untrained: 0,
  };
  const read = async (data: readonly ChatFile[]): Promise<Sample[]> => {
    const samples: Sample[] = [];
    for await (const conversation of conversationsOf(data)) {
      const sample = await encode(conversation, encoding);
      const excess = sample.ids.length - 1 - options.length;
      const truncated = excess > 0
        ? firstTokens(sample, options.length + 1)
        : sample;
      if (excess > 0) {
        report.truncated++;
        report.lost += excess;
      }
      const trained = truncated.weights.subarray(1).filter((w) => w > 0).length;
      if (trained === 0) {
        report.untrained++;
        continue;
      }
      report.tokens += truncated.ids.length;
      report.trained += trained;
      samples.push(truncated);
    }
    return samples;
  };
  try {
    const all = await read(options.data);
    const count = Math.round(split * all.length);
    const order = shuffled(all.length, randomNumbers(seed, SPLIT));
    const held = new Set(order.subarray(0, count));
    const samples = all.filter((_, i) => !held.has(i));
    const validation = [
      ...all.filter((_, i) => held.has(i)),
      ...await read(options.validation ?? []),
    ];
    if (samples.length === 0) {
      throw new DataError(
        `Cannot train on the conversations: none of ${
          report.samples + report.untrained + count
        } has trained tokens. Check the roles of messages and --length`,
      );
    }
    report.samples = samples.length;
    report.validation = validation.length;
    return {
      samples,
      validation,
      report,
      digest: await digestOf([...samples, ...validation]),
    };
  } finally {
    tokenizer.close();
    template.close();
  }
}

/** The random stream of the split; epochs have those from 0 on. */
const SPLIT = 2 ** 31 - 1;

/** The conversations of all files. Blank lines are skipped. */
async function* conversationsOf(
  data: readonly ChatFile[],
): AsyncGenerator<Conversation> {
  for (const { name, text } of data) {
    let [rest, line] = ["", 0];
    for await (const chunk of text()) {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop()!;
      for (const one of lines) {
        line++;
        if (one.trim() !== "") yield conversationOf(one, `${name}:${line}`);
      }
    }
    if (rest.trim() !== "") yield conversationOf(rest, `${name}:${line + 1}`);
  }
}

function conversationOf(line: string, where: string): Conversation {
  const refuse = (state: string) =>
    new DataError(
      `Cannot read ${where}: ${state}. Give one conversation per line, {"messages": [{"role": "user", "content": "…"}, …]}`,
    );
  let value: unknown;
  try {
    value = parseJson(line);
  } catch (error) {
    if (error instanceof JsonError) throw refuse(`it ${error.state}`);
    throw error;
  }
  const { messages, tools } = (value ?? {}) as {
    readonly messages?: unknown;
    readonly tools?: unknown;
  };
  if (!Array.isArray(messages) || messages.length === 0) {
    throw refuse("it has no list 'messages'");
  }
  const wrong = messages.findIndex((message: unknown) =>
    typeof (message as { role?: unknown } | null)?.role !== "string"
  );
  if (wrong >= 0) throw refuse(`message ${wrong + 1} has no role`);
  if (tools !== undefined && tools !== null && !Array.isArray(tools)) {
    throw refuse("its 'tools' are no list");
  }
  return {
    messages: messages as readonly TemplateMessage[],
    tools: (tools ?? undefined) as readonly object[] | undefined,
    where,
  };
}

/** The tokens of a conversation, and the weight of each as a label. */
async function encode(
  conversation: Conversation,
  { template, tokenizer, stop, trainOn }: Encoding,
): Promise<Sample> {
  const { text, trained } = await trainedText(template, conversation, trainOn);
  const ids = Int32Array.from(await tokenizer.encodeBare(text));
  const weights = new Float32Array(ids.length);
  // The first token at or after a character: the tokens of the text before it are a prefix, except for the last ones.
  const tokenAt = async (character: number) => {
    if (character === text.length) return ids.length;
    const before = await tokenizer.encodeBare(text.slice(0, character));
    const differs = before.findIndex((id, i) => id !== ids[i]);
    return differs < 0 ? before.length : differs;
  };
  for (const { from, to, weight } of trained) {
    const [first, end] = [await tokenAt(from), await tokenAt(to)];
    weights.fill(weight, first, end);
    if (trainOn === "all") continue;
    // A model stops at the stop token and does not generate the line break after it.
    const last = ids.subarray(first, end).findLastIndex((id) => stop.has(id));
    if (last < 0) continue;
    const after = [...ids.subarray(first + last + 1, end)];
    if ((await tokenizer.decodeAll(after)).trim() !== "") continue;
    weights.fill(0, first + last + 1, end);
  }
  return { ids, weights };
}

function firstTokens({ ids, weights }: Sample, count: number): Sample {
  return { ids: ids.slice(0, count), weights: weights.slice(0, count) };
}

async function digestOf(samples: readonly Sample[]): Promise<string> {
  let digest = "";
  for (const { ids, weights } of samples) {
    digest = await sha256(digest + await sha256(ids) + await sha256(weights));
  }
  return digest;
}
