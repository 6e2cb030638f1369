/**
 * Formats of tool calls in the text of a model. A checkpoint's format is the first one whose pattern is in its chat
 * template, which describes the format to the model.
 */

import { jsonEnd, objectText, parsed } from "./json_text.ts";
import { pythonCalls } from "./python_calls.ts";

/** A call of a function. */
export interface CallText {
  /** The model's id of the call, if the format has ids. */
  readonly id?: string | undefined;
  readonly name: string;
  /** A JSON object, or the start of it. */
  readonly arguments: string;
}

/** The type of a parameter in the schema of a function, if it is known. */
export type ParameterType = (name: string, parameter: string) => unknown;

/** Properties of a section. */
export interface SectionOptions {
  /** Whether the section is complete. */
  readonly ended: boolean;
  readonly typeOf: ParameterType;
}

/** A format of calls. */
export interface ToolFormat {
  /** Found in templates that use the format. */
  readonly template: RegExp;
  /** Texts before a section with calls, and the text after it. Undefined: the rest of the text. */
  readonly open: readonly string[];
  readonly close?: string;
  /** Texts that are omitted, also without tools. */
  readonly hidden?: readonly string[];
  /** Special tokens in sections. */
  readonly inner?: readonly string[];
  /** The calls of a section. Their arguments only grow as the section grows. */
  readonly calls: (section: string, options: SectionOptions) => CallText[];
}

/** Formats by name, in order of precedence. */
export const TOOL_FORMATS = {
  // gpt-oss: https://cookbook.openai.com/articles/openai-harmony
  harmony: {
    template: /<\|channel\|>/,
    open: ["<|channel|>commentary to=functions.", " to=functions."],
    close: "<|call|>",
    hidden: [
      "<|start|>assistant",
      "<|channel|>final<|message|>",
      "<|channel|>commentary<|message|>",
      "<|end|>",
      "<|return|>",
    ],
    inner: ["<|constrain|>"],
    calls: headed(/^(?<name>[\w.-]+)[^{]*?<\|message\|>/g),
  },
  deepseekMarkup: {
    template: /<｜DSML｜/,
    open: ["<｜DSML｜function_calls>"],
    close: "</｜DSML｜function_calls>",
    calls: tagged({
      call: /<｜DSML｜invoke name="([^"]+)">/g,
      end: "</｜DSML｜invoke>",
      parameter:
        /<｜DSML｜parameter name="([^"]+)"[^>]*>([^]*?)<\/｜DSML｜parameter>/g,
    }),
  },
  // DeepSeek-V3 and R1 put arguments in a code block, V3.1 does not.
  deepseek: {
    template: /<｜tool▁calls▁begin｜>/,
    open: ["<｜tool▁calls▁begin｜>"],
    close: "<｜tool▁calls▁end｜>",
    inner: ["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
    calls: headed(
      /<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>(?<block>[^\n<]+)\n```json\n|(?!function<)(?<name>[^\n<]+)<｜tool▁sep｜>)/g,
    ),
  },
  kimi: {
    template: /<\|tool_call_argument_begin\|>/,
    open: ["<|tool_calls_section_begin|>"],
    close: "<|tool_calls_section_end|>",
    inner: [
      "<|tool_call_begin|>",
      "<|tool_call_argument_begin|>",
      "<|tool_call_end|>",
    ],
    calls: headed(
      /<\|tool_call_begin\|>\s*(?<id>(?:functions\.)?(?<name>[^:<]+):\d+)\s*<\|tool_call_argument_begin\|>/g,
    ),
  },
  miniMax: {
    template: /<minimax:tool_call>/,
    open: ["<minimax:tool_call>"],
    close: "</minimax:tool_call>",
    calls: tagged({
      call: /<invoke name="([^"]+)">/g,
      end: "</invoke>",
      parameter: /<parameter name="([^"]+)">([^]*?)<\/parameter>/g,
    }),
  },
  longcat: {
    template: /<longcat_tool_call>/,
    open: ["<longcat_tool_call>"],
    close: "</longcat_tool_call>",
    calls: tagged({
      call: /^\s*([^\s<]+)(?=[\s<])/g,
      parameter:
        /<longcat_arg_key>([^]*?)<\/longcat_arg_key>\s*<longcat_arg_value>([^]*?)<\/longcat_arg_value>/g,
    }),
  },
  // GLM-4.5 and later.
  glm: {
    template: /<arg_key>/,
    open: ["<tool_call>"],
    close: "</tool_call>",
    calls: tagged({
      call: /^\s*([^\s<]+)(?=[\s<])/g,
      parameter:
        /<arg_key>([^]*?)<\/arg_key>\s*<arg_value>([^]*?)<\/arg_value>/g,
    }),
  },
  // Qwen3-Coder, Qwen3.5 and Nemotron 3.
  qwenMarkup: {
    template: /<function=/,
    open: ["<tool_call>"],
    close: "</tool_call>",
    calls: tagged({
      call: /<function=([^>]+)>/g,
      end: "</function>",
      parameter: /<parameter=([^>]+)>([^]*?)<\/parameter>/g,
    }),
  },
  // LFM2: its template has only the list of tools.
  lfm2: {
    template: /<\|tool_list_start\|>|<\|tool_call_start\|>/,
    open: ["<|tool_call_start|>"],
    close: "<|tool_call_end|>",
    calls: (section) =>
      /^\s*\[?\s*\{/.test(section) ? jsonCalls(section) : pythonCalls(section),
  },
  // Mixtral and Mistral: a list, or since version 11 a name and arguments.
  mistral: {
    template: /\[TOOL_CALLS\]/,
    open: ["[TOOL_CALLS]"],
    inner: ["[ARGS]", "[CALL_ID]"],
    calls: (section, options) =>
      /^\s*[[{]/.test(section)
        ? jsonCalls(section)
        : MISTRAL_NAMED(section, options),
  },
  granite: {
    template: /<\|tool_call\|>/,
    open: ["<|tool_call|>"],
    calls: jsonCalls,
  },
  nemotron: {
    template: /<TOOLCALL>/,
    open: ["<TOOLCALL>"],
    close: "</TOOLCALL>",
    calls: jsonCalls,
  },
  // Hunyuan and MiniMax-M1.
  list: {
    template: /<tool_calls>/,
    open: ["<tool_calls>"],
    close: "</tool_calls>",
    calls: jsonCalls,
  },
  // Hermes, Qwen2, Qwen3, Granite 4, ERNIE 4.5 and dots1.
  hermes: {
    template: /<tool_call>/,
    open: ["<tool_call>"],
    close: "</tool_call>",
    calls: jsonCalls,
  },
} satisfies { readonly [name: string]: ToolFormat };

/** Calls that a request demands: the answer is a list of them. */
export const DEMANDED_CALLS: ToolFormat = {
  template: /(?!)/,
  open: [],
  calls: jsonCalls,
};

/** Name of a format. */
export type ToolFormatName = keyof typeof TOOL_FORMATS;

/** Texts around the reasoning of a model. */
export interface ReasoningFormat {
  readonly open: string;
  readonly close: string;
  /** Texts that are omitted. */
  readonly hidden?: readonly string[];
}

/** Formats of reasoning, in order of precedence; the pattern is in templates that use the format. */
const REASONING: readonly (ReasoningFormat & { readonly template: RegExp })[] =
  [
    {
      template: /<\|channel\|>/,
      open: "<|channel|>analysis<|message|>",
      close: "<|end|>",
    },
    {
      template: /<longcat_think>/,
      open: "<longcat_think>",
      close: "</longcat_think>",
    },
    // Hunyuan.
    {
      template: /<answer>/,
      open: "<think>",
      close: "</think>",
      hidden: ["<answer>", "</answer>"],
    },
    { template: /<\/?think>/, open: "<think>", close: "</think>" },
    { template: /\[THINK\]/, open: "[THINK]", close: "[/THINK]" },
  ];

/** The format of reasoning of a template. Undefined for a template without a known format. */
export function reasoningFormatOf(
  template: string,
): ReasoningFormat | undefined {
  return REASONING.find((format) => format.template.test(template));
}

/** The format of a template. Undefined for a template without a known format. */
export function toolFormatOf(template: string): ToolFormat | undefined {
  return Object.values(TOOL_FORMATS).find((format: ToolFormat) =>
    format.template.test(template)
  );
}

/** Calls as JSON objects, in a list or one after another: `{"name": …, "arguments": {…}}`. */
function jsonCalls(section: string): CallText[] {
  const calls: CallText[] = [];
  let at = section.indexOf("{");
  while (at >= 0) {
    const { fields, end } = objectText(section, at);
    const name = fields.get("name");
    const given = fields.get("arguments") ?? fields.get("parameters");
    const known = name?.complete ? parsed(name.text) : undefined;
    if (typeof known === "string") {
      calls.push({
        name: known,
        arguments: argumentsText(given, end !== undefined),
      });
    }
    if (end === undefined) break;
    at = section.indexOf("{", end);
  }
  return calls;
}

/** Arguments as JSON of an object; some models write this JSON as a string. */
function argumentsText(
  given: { readonly text: string; readonly complete: boolean } | undefined,
  ended: boolean,
): string {
  if (!given) return ended ? "{}" : "";
  if (!given.text.startsWith('"')) return given.text;
  return given.complete ? String(parsed(given.text)) : "";
}

const MISTRAL_NAMED = headed(
  /(?:^|\[TOOL_CALLS\])\s*(?<name>[^[{\s]+)(?:\[CALL_ID\](?<id>[^[]+))?\[ARGS\]/g,
);

/** Calls that begin with a pattern, with the groups `name` or `block`, and `id`. A JSON object follows. */
function headed(pattern: RegExp): ToolFormat["calls"] {
  return (section) =>
    [...section.matchAll(pattern)].map((found) => {
      const { name, block, id } = found.groups!;
      const at = found.index + found[0].length;
      const from = section.slice(at).search(/\S/);
      const text = from < 0
        ? ""
        : section.slice(at + from, jsonEnd(section, at + from));
      return { name: (name ?? block)!.trim(), arguments: text, id };
    });
}

/** Calls with one element per parameter, the first group of whose pattern is its name, the second one its value. */
function tagged({ call, end, parameter }: {
  /** The first group is the name of the function. */
  readonly call: RegExp;
  /** Text after a call. Undefined: the section ends. */
  readonly end?: string;
  readonly parameter: RegExp;
}): ToolFormat["calls"] {
  return (text, { ended, typeOf }) => {
    // A name may end with its section.
    const section = ended ? `${text}\n` : text;
    const found = [...section.matchAll(call)];
    return found.map((one, i) => {
      const name = one[1]!.trim();
      const from = one.index + one[0].length;
      const next = found[i + 1]?.index;
      const closed = end === undefined ? -1 : section.indexOf(end, from);
      const inner = section.slice(from, closed < 0 ? next : closed);
      const complete = closed >= 0 || next !== undefined || ended;
      const fields = [...inner.matchAll(parameter)].map(([, key, value]) =>
        `${JSON.stringify(key)}: ${valueText(value!, typeOf(name, key!))}`
      );
      return {
        name,
        arguments: `{${fields.join(", ")}${complete ? "}" : ""}`,
      };
    });
  };
}

/** JSON of a parameter's text: a string if its type is, otherwise the text itself if it is JSON. */
function valueText(value: string, type: unknown): string {
  const text = value.replace(/^\n/, "").replace(/\n$/, "");
  return type === "string" || parsed(text) === undefined
    ? JSON.stringify(text)
    : text.trim();
}
