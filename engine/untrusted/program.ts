/**
 * The program of a process that executes untrusted text: chat templates, regular expressions of tokenizers, and models
 * in plans. It answers `{ task, args }` with `{ value }` or `{ error }`.
 */

import type { Template } from "@huggingface/jinja";
import type { Tokenizer } from "@huggingface/tokenizers";
import process from "node:process";
import type { Plan } from "../../spec/plan/plan.ts";
import type { GrammarSource } from "../text/grammar.ts";
import { tokenBytes } from "../text/token_bytes.ts";
import { completeText, type HeldText } from "../text/tokenizer.ts";
import type { GrammarToken } from "./grammars.ts";
import type { GrammarProgram } from "./xgrammar.ts";

/** Available tasks. */
export type Task = keyof typeof TASKS;

/** An answer. */
export interface Answer {
  readonly value?: unknown;
  readonly error?: string;
}

let tokenizer: Tokenizer | undefined;
/** The contents of tokenizer.json. */
let tokenizerFile: object = {};
let bytesOf: ((token: number) => number[]) | undefined;
let template: Template | undefined;
let grammars: GrammarProgram | undefined;
/** Texts of special tokens. */
let special: ReadonlyMap<number, string> = new Map();

const TASKS = {
  async openTokenizer(file: object, config: object) {
    const { Tokenizer } = await import("@huggingface/tokenizers");
    tokenizer = new Tokenizer(file, config);
    tokenizerFile = file;
    const tokens = [...tokenizer.get_added_tokens_decoder()];
    special = new Map(
      tokens.flatMap(([id, { special, content }]) =>
        special ? [[id, content]] : []
      ),
    );
  },
  encode: (text: string, special: boolean) =>
    tokenizer!.encode(text, { add_special_tokens: special }).ids,
  decode,
  tokenBytes: (token: number) =>
    (bytesOf ??= tokenBytes(tokenizer!, tokenizerFile))(token),
  complete: (
    texts: readonly (readonly [
      held: HeldText,
      added: readonly number[],
      shown: readonly string[],
    ])[],
  ) =>
    texts.map(([held, added, shown]) =>
      completeText((ids) => decode(ids, true, shown), held, added)
    ),
  async openTemplate(source: string) {
    const { compileTemplate } = await import("./jinja.ts");
    template = compileTemplate(source);
  },
  render: (values: Record<string, unknown>) => template!.render(values),
  async openGrammars(
    file: object,
    config: object,
    options: { readonly vocabulary: number; readonly stop: readonly number[] },
  ) {
    const { Tokenizer } = await import("@huggingface/tokenizers");
    const { openGrammarProgram } = await import("./xgrammar.ts");
    grammars = await openGrammarProgram(new Tokenizer(file, config), {
      file,
      ...options,
    });
  },
  checkGrammar: (source: GrammarSource) => grammars!.check(source),
  startGrammar: (id: number, source: GrammarSource) =>
    grammars!.start(id, source),
  acceptTokens: (tokens: readonly GrammarToken[]) => grammars!.accept(tokens),
  endGrammar: (id: number) => grammars!.end(id),
  async whyNotCompiled(plan: Plan) {
    const { whyNotCompiled } = await import("../compiled_from.ts");
    return await whyNotCompiled(plan);
  },
};

function decode(
  ids: number[],
  skip: boolean,
  shown: readonly string[],
): string {
  if (skip && shown.length > 0) {
    const visible = ids.filter((id) => {
      const text = special.get(id);
      return text === undefined || shown.some((one) => one.includes(text));
    });
    return decode(visible, false, shown);
  }
  return ids.length === 0
    ? ""
    : tokenizer!.decode(ids, { skip_special_tokens: skip });
}

interface Call {
  readonly task: Task;
  readonly args: readonly never[];
}

process.on("message", async ({ task, args }: Call) => {
  let answer: Answer;
  try {
    const run: (...args: readonly never[]) => unknown = TASKS[task];
    answer = { value: await run(...args) };
  } catch (error) {
    answer = { error: String(error instanceof Error ? error.message : error) };
  }
  process.send!(answer);
});
