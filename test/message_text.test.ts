// Assistant texts as content, reasoning and tool calls: every tool format, at once and in pieces.

import fc from "fast-check";
import t from "tap";
import {
  reasoningFormatOf,
  TOOL_FORMATS,
  type ToolFormat,
  type ToolFormatName,
  toolFormatOf,
} from "../engine/server/message/formats.ts";
import {
  type MessageFormat,
  MessageText,
} from "../engine/server/message/message_text.ts";
import { SEED } from "./helpers/seed.ts";

/** Content of a parsed text. */
interface Meaning {
  readonly content: string;
  readonly reasoning: string;
  readonly calls: readonly (readonly [
    name: string,
    values: unknown,
    id?: string,
  ])[];
}

interface Case extends Partial<Meaning> {
  readonly text: string;
}

/** Calls of two functions; `f` has a parameter of each kind. */
const BOTH: Meaning["calls"] = [
  ["f", { city: "Rome", days: 2, tags: ["a"] }],
  ["g", {}],
];
const F = '{"city": "Rome", "days": 2, "tags": ["a"]}';

const CASES: { readonly [F in ToolFormatName]: readonly Case[] } = {
  harmony: [{
    text:
      `<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant<|channel|>commentary<|message|>Look:<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>${F}<|call|>`,
    reasoning: "Hm.",
    content: "Look:",
    calls: BOTH.slice(0, 1),
  }, {
    text: ` to=functions.f<|channel|>commentary json<|message|>${F}`,
    calls: BOTH.slice(0, 1),
  }, {
    text: "<|channel|>final<|message|>Yes.",
    content: "Yes.",
  }],
  deepseekMarkup: [{
    text:
      `Look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n<｜DSML｜parameter name="tags" string="false">["a"]</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>`,
    content: "Look.",
    calls: BOTH,
  }],
  deepseek: [{
    text:
      `<think>Hm.</think>\n\nLook.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n\`\`\`json\n${F}\n\`\`\`<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n\`\`\`json\n{}\n\`\`\`<｜tool▁call▁end｜><｜tool▁calls▁end｜>`,
    reasoning: "Hm.",
    content: "Look.",
    calls: BOTH,
  }, {
    text:
      `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>${F}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`,
    calls: BOTH,
  }],
  kimi: [{
    text:
      `Look.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>${F}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>`,
    content: "Look.",
    calls: [["f", BOTH[0]![1], "functions.f:0"], ["g", {}, "functions.g:1"]],
  }],
  miniMax: [{
    text:
      `<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Rome</parameter>\n<parameter name="days">2</parameter>\n<parameter name="tags">["a"]</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>`,
    calls: BOTH,
  }],
  longcat: [{
    text:
      `<longcat_think>Hm.</longcat_think><longcat_tool_call>f\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Rome</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>2</longcat_arg_value>\n<longcat_arg_key>tags</longcat_arg_key>\n<longcat_arg_value>["a"]</longcat_arg_value>\n</longcat_tool_call>\n<longcat_tool_call>g\n</longcat_tool_call>`,
    reasoning: "Hm.",
    calls: BOTH,
  }],
  glm: [{
    text:
      `\n<think>Hm.</think>\n<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>["a"]</arg_value>\n</tool_call>\n<tool_call>g</tool_call>`,
    reasoning: "Hm.",
    calls: BOTH,
  }],
  qwenMarkup: [{
    text:
      `Look.\n<tool_call>\n<function=f>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=tags>\n["a"]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>`,
    content: "Look.",
    calls: BOTH,
  }],
  lfm2: [{
    text:
      `<|tool_call_start|>[f(city="Rome", days=2, tags=['a']), g()]<|tool_call_end|>Done.`,
    content: "Done.",
    calls: BOTH,
  }, {
    text: `<|tool_call_start|>[f(a={'b': [True, None, -1.5e3]}, c='it\\'s')]`,
    calls: [["f", { a: { b: [true, null, -1500] }, c: "it's" }]],
  }, {
    text: `<|tool_call_start|>[f(a=1), g(a=`,
    calls: [["f", { a: 1 }]],
  }],
  mistral: [{
    text:
      `[TOOL_CALLS] [{"name": "f", "arguments": ${F}}, {"name": "g", "arguments": {}}]`,
    calls: BOTH,
  }, {
    text: `Look.[TOOL_CALLS]f[ARGS]${F}[TOOL_CALLS]g[ARGS]{}`,
    content: "Look.",
    calls: BOTH,
  }],
  granite: [{
    text:
      `<|tool_call|>[{"name": "f", "arguments": ${F}}, {"name": "g", "arguments": {}}]`,
    calls: BOTH,
  }],
  nemotron: [{
    text:
      `<TOOLCALL>[{"name": "f", "arguments": ${F}}, {"name": "g", "arguments": {}}]</TOOLCALL>`,
    calls: BOTH,
  }],
  list: [{
    text:
      `Look.\n<tool_calls>[{"name": "f", "arguments": ${F}}, {"name": "g"}]</tool_calls>`,
    content: "Look.",
    calls: BOTH,
  }],
  hermes: [{
    text:
      `<think>\nHm.\n</think>\n\nLook.\n<tool_call>\n{"name": "f", "arguments": ${F}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>`,
    reasoning: "Hm.",
    content: "Look.",
    calls: BOTH,
  }, {
    // Arguments may come first, and may be a string.
    text: `<tool_call>{"arguments": ${
      JSON.stringify(F)
    }, "name": "f"}</tool_call><tool_call>{"parameters": {}, "name": "g"}</tool_call>`,
    calls: BOTH,
  }, {
    text: "<tool_call>nothing</tool_call> and < tool",
    content: "<tool_call>nothing</tool_call>and < tool",
  }, {
    text: `A < b <tool_call>{"name": "f", "arguments": {"city": "R}`,
    content: "A < b",
    calls: [["f", undefined]],
  }],
};

/** Parses a text that arrives in pieces. */
function meaningOf(
  pieces: readonly string[],
  format: MessageFormat,
): Meaning & { readonly names: number } {
  const message = new MessageText(format);
  const deltas = [...pieces.map((one) => message.push(one)), message.end()];
  const calls: { name: string; text: string; id?: string | undefined }[] = [];
  let names = 0;
  for (
    const { index, id, name, arguments: text } of deltas.flatMap((d) => d.calls)
  ) {
    if (name !== undefined) {
      names++;
      calls[index] = { name, text, id };
    } else calls[index]!.text += text;
  }
  t.equal(message.calls, calls.length);
  return {
    content: deltas.map(({ content }) => content).join(""),
    reasoning: deltas.map(({ reasoning }) => reasoning).join(""),
    calls: calls.map(({ name, text, id }) =>
      id === undefined
        ? [name, parseArguments(text)]
        : [name, parseArguments(text), id]
    ),
    names,
  };
}

/** Parsed arguments; undefined if the text is incomplete. */
function parseArguments(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function formatOf(name: ToolFormatName, text: string): MessageFormat {
  const tools: ToolFormat = TOOL_FORMATS[name];
  const reasoning = reasoningFormatOf(text);
  return {
    tools,
    hidden: tools.hidden ?? [],
    typeOf: (_, parameter) => ({ city: "string", days: "integer" })[parameter],
    reasoning,
    begins: "content",
  };
}

for (const [name, cases] of Object.entries(CASES)) {
  t.test(`the format ${name}`, (t) => {
    for (const { text, ...meaning } of cases) {
      const format = formatOf(name as ToolFormatName, text);
      const parsed = meaningOf([text], format);
      const { content = "", reasoning = "", calls = [] } = meaning;
      t.strictSame(
        parsed,
        { content, reasoning, calls, names: calls.length },
        text,
      );
      t.strictSame(meaningOf([...text], format), parsed, "by characters");
      fc.assert(
        fc.property(fc.array(fc.nat(text.length)), (cuts) => {
          const ends = [0, ...cuts.toSorted((a, b) => a - b), text.length];
          const pieces = ends.slice(1).map((end, i) =>
            text.slice(ends[i], end)
          );
          t.strictSame(meaningOf(pieces, format), parsed);
        }),
        { numRuns: 20, seed: SEED },
      );
    }
    t.end();
  });
}

t.test("formats are found in templates", (t) => {
  const found = (template: string) => toolFormatOf(template);
  t.equal(found("{{ messages }}"), undefined);
  t.equal(
    found("<tool_call>\n<function=example>"),
    TOOL_FORMATS.qwenMarkup,
    "not hermes",
  );
  t.equal(found("<tool_call>{name}\n<arg_key>"), TOOL_FORMATS.glm);
  t.equal(found('<tool_call>{"name": …}'), TOOL_FORMATS.hermes);
  t.end();
});

t.test("reasoning started by the prompt", (t) => {
  const format = {
    ...formatOf("hermes", "<think>"),
    begins: "reasoning" as const,
  };
  const { content, reasoning } = meaningOf(
    ["\nHm", " \n</th", "ink>", "\n\nYes. "],
    format,
  );
  t.strictSame([reasoning, content], ["Hm", "Yes. "]);
  t.end();
});
