/** Splits the text of an assistant into content, reasoning and tool calls while it grows. */

import { startLength } from "../../generation/stop_text.ts";
import type {
  CallText,
  ParameterType,
  ReasoningFormat,
  ToolFormat,
} from "./formats.ts";

/** A part of a text. */
export type MessageMode = "content" | "reasoning" | "calls";

/** Formats of a text. */
export interface MessageFormat {
  /** Undefined: calls are content. */
  readonly tools: ToolFormat | undefined;
  /** Texts that are omitted. */
  readonly hidden: readonly string[];
  readonly typeOf: ParameterType;
  /** Texts before and after reasoning. Undefined: reasoning is content. */
  readonly reasoning: ReasoningFormat | undefined;
  readonly begins: MessageMode;
}

/** New text of a call; the first one of a call has its name. */
export interface CallDelta {
  readonly index: number;
  readonly id?: string | undefined;
  readonly name?: string;
  readonly arguments: string;
}

/** New text of a message. */
export interface MessageDelta {
  content: string;
  reasoning: string;
  readonly calls: CallDelta[];
}

/** Growth of a section after which it is read again. */
const GROWTH = 1 / 64;

/** A message whose text grows. */
export class MessageText {
  readonly #format: MessageFormat;
  #mode: MessageMode;
  /** The text that is not yet assigned. */
  #pending = "";
  /** Spaces at the end of content or reasoning. */
  #spaces = "";
  /** Whether the text of this mode has begun. */
  #begun = false;
  /** The text before the section with calls. */
  #open = "";
  /** Number of calls in earlier sections, and the calls of the current one. */
  #before = 0;
  #calls: readonly CallText[] = [];
  /** Length of a section that is read next: long ones are read less often. */
  #nextLength = 0;

  constructor(format: MessageFormat) {
    this.#format = format;
    this.#mode = format.begins;
    this.#begun = format.begins === "content";
  }

  /** Number of calls so far. */
  get calls(): number {
    return this.#before + this.#calls.length;
  }

  /** Adds text. */
  push(text: string): MessageDelta {
    return this.#push(text, false);
  }

  /** Ends the text. */
  end(): MessageDelta {
    const delta = this.#push("", true);
    if (this.#mode === "content" && this.calls === 0) {
      delta.content += this.#spaces;
    }
    return delta;
  }

  #push(text: string, ended: boolean): MessageDelta {
    this.#pending += text;
    const delta: MessageDelta = { content: "", reasoning: "", calls: [] };
    while (this.#advance(delta, ended));
    return delta;
  }

  /** Assigns pending text up to the next marker. Returns whether there is one. */
  #advance(delta: MessageDelta, ended: boolean): boolean {
    const { tools, hidden, reasoning } = this.#format;
    const ends = this.#mode === "content"
      ? [
        ...reasoning ? [reasoning.open] : [],
        ...tools?.open ?? [],
        ...hidden,
      ]
      : this.#mode === "reasoning"
      ? [reasoning!.close]
      : tools!.close === undefined
      ? []
      : [tools!.close];
    const pending = this.#pending;
    const [at, marker] = firstOf(pending, ends);
    const until = at ?? (ended ? pending.length : pending.length -
      startLength(pending, ends));
    const text = pending.slice(0, until);
    if (this.#mode === "calls") {
      const complete = ended || marker !== undefined;
      if (complete || text.length >= this.#nextLength) {
        this.#grow(text, delta, complete);
        this.#nextLength = text.length * (1 + GROWTH);
      }
      if (!complete) return false;
      if (this.#calls.length === 0) {
        delta.content += this.#open + text + (marker ?? "");
      }
      this.#before += this.#calls.length;
      this.#calls = [];
    } else {
      this.#say(text, delta);
    }
    this.#pending = pending.slice(until + (marker?.length ?? 0));
    if (marker !== undefined) this.#enter(marker);
    return marker !== undefined;
  }

  #enter(marker: string): void {
    const { hidden, reasoning } = this.#format;
    if (this.#mode === "content" && hidden.includes(marker)) return;
    const before = this.#mode;
    this.#mode = before !== "content"
      ? "content"
      : marker === reasoning?.open
      ? "reasoning"
      : "calls";
    this.#open = marker;
    this.#spaces = "";
    this.#begun = false;
    this.#nextLength = 0;
  }

  /** Assigns text to content or reasoning, without spaces around it. */
  #say(text: string, delta: MessageDelta): void {
    const all = this.#spaces + (this.#begun ? text : text.trimStart());
    const said = all.trimEnd();
    this.#spaces = all.slice(said.length);
    if (said === "") return;
    this.#begun = true;
    if (this.#mode === "reasoning") delta.reasoning += said;
    else delta.content += said;
  }

  /** Assigns new calls, and new text of their arguments. */
  #grow(section: string, delta: MessageDelta, ended: boolean): void {
    const { tools, typeOf } = this.#format;
    const calls = tools!.calls(section, { ended, typeOf });
    for (const [i, { id, name, arguments: text }] of calls.entries()) {
      const index = this.#before + i;
      const before = this.#calls[i];
      if (!before) delta.calls.push({ index, id, name, arguments: text });
      else if (text.length > before.arguments.length) {
        const added = text.slice(before.arguments.length);
        delta.calls.push({ index, arguments: added });
      }
    }
    this.#calls = calls;
  }
}

/** The first of some texts in a text. */
function firstOf(
  text: string,
  ends: readonly string[],
): [at: number | undefined, found: string | undefined] {
  let [at, found]: [number | undefined, string | undefined] = [
    undefined,
    undefined,
  ];
  for (const end of ends) {
    const index = text.indexOf(end);
    if (index >= 0 && (at === undefined || index < at)) {
      [at, found] = [index, end];
    }
  }
  return [at, found];
}
