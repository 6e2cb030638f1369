/** Finds the text of the assistant in a rendered conversation. */

import { DataError } from "../../spec/errors.ts";
import {
  type ChatTemplate,
  MARKS,
  type RenderOptions,
  type TemplateMessage,
} from "../checkpoint/chat.ts";

/** A conversation of a file. */
export interface Conversation extends Pick<RenderOptions, "tools"> {
  readonly messages: readonly TemplateMessage[];
  /** Its file and line, for messages. */
  readonly where: string;
}

/** A range of characters, and the weight of its tokens in the loss. */
export interface TrainedRange {
  readonly from: number;
  readonly to: number;
  readonly weight: number;
}

/** A rendered conversation, and its trained ranges in order. */
export interface TrainedText {
  readonly text: string;
  readonly trained: readonly TrainedRange[];
}

/** Which tokens are trained: those of the assistant, or all. */
export type TrainOn = "assistant" | "all";

/**
 * Renders a conversation and finds its trained ranges. The assistant's turns are the `{% generation %}` blocks of the
 * template. In a template without them, a turn begins where the conversation before it ends with a generation prompt,
 * and ends where the conversation up to it ends. Throws DataError if these texts are not prefixes of the complete one.
 */
export async function trainedText(
  template: ChatTemplate,
  conversation: Conversation,
  trainOn: TrainOn,
): Promise<TrainedText> {
  const { messages, tools } = conversation;
  const render = (count: number, generationPrompt: boolean) =>
    template.render(messages.slice(0, count), { tools, generationPrompt });
  const all = await render(messages.length, false);
  if (template.marked) {
    const { text, trained } = unmarked(all, conversation);
    return trainOn === "all" ? trainedEntirely(text) : { text, trained };
  }
  if (trainOn === "all") return trainedEntirely(all);
  const trained: TrainedRange[] = [];
  for (const i of assistantTurns(conversation)) {
    const before = await render(i, true);
    const after = i === messages.length - 1 ? all : await render(i + 1, false);
    if (!all.startsWith(after) || !after.startsWith(before)) {
      throw new DataError(
        `Cannot find the assistant's text in ${conversation.where}: the chat template renders message ${
          i + 1
        } differently ${
          all.startsWith(after)
            ? "than it prompts for it"
            : "when others follow it"
        }. Use a template with {% generation %} blocks, or --train-on all`,
      );
    }
    const weight = weightOf(conversation, i);
    trained.push({ from: before.length, to: after.length, weight });
  }
  return { text: all, trained };
}

function trainedEntirely(text: string): TrainedText {
  return { text, trained: [{ from: 0, to: text.length, weight: 1 }] };
}

/** Removes the marks from a text. */
function unmarked(
  marked: string,
  conversation: Conversation,
): TrainedText {
  const pieces = marked.split(/([\ufdd0\ufdd1])/);
  const trained: TrainedRange[] = [];
  const turns = assistantTurns(conversation);
  let [text, from] = ["", -1];
  for (const piece of pieces) {
    if (piece !== MARKS.start && piece !== MARKS.end) text += piece;
    else if ((piece === MARKS.start) !== from < 0) {
      throw unequal(conversation, "blocks inside of each other");
    } else if (piece === MARKS.start) from = text.length;
    else {
      const turn = turns[trained.length];
      const weight = turn === undefined ? 1 : weightOf(conversation, turn);
      trained.push({ from, to: text.length, weight });
      from = -1;
    }
  }
  const weighted = turns.some((turn) => weightOf(conversation, turn) !== 1);
  if (weighted && trained.length !== turns.length) {
    throw unequal(
      conversation,
      `${trained.length} blocks for ${turns.length} weighted messages`,
    );
  }
  return { text, trained };
}

function unequal({ where }: Conversation, state: string): DataError {
  return new DataError(
    `Cannot find the assistant's text in ${where}: the {% generation %} blocks of the chat template give ${state}. Check the template, or use --train-on all`,
  );
}

function assistantTurns({ messages }: Conversation): number[] {
  return messages.flatMap(({ role }, i) => role === "assistant" ? [i] : []);
}

/** The weight of a message in the loss, `weight` as in files for OpenAI's fine-tuning. Default: 1. */
function weightOf({ messages, where }: Conversation, index: number): number {
  const { weight = 1 } = messages[index]!;
  if (typeof weight === "number" && weight >= 0 && weight < Infinity) {
    return weight;
  }
  throw new DataError(
    `Cannot train on ${where}: the weight of message ${index + 1} is ${
      JSON.stringify(weight)
    }. Give a number of at least 0`,
  );
}
