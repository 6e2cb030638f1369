/** XGrammar in a process for untrusted text: compiles grammars for a tokenizer, and matches them. */

import type { Tokenizer } from "@huggingface/tokenizers";
import type { CompiledGrammar, GrammarMatcher } from "@mlc-ai/web-xgrammar";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { GrammarSource } from "../text/grammar.ts";
import { vocabularyKind } from "../text/token_bytes.ts";
import type { GrammarToken } from "./grammars.ts";
import { hasFiniteText } from "./productive.ts";

type XGrammar = typeof import("@mlc-ai/web-xgrammar");

/** A grammar compiler for the tokens of a tokenizer. */
export interface GrammarProgram {
  /** Compiles a grammar. Returns whether it has a finite text. Throws its error message. */
  check(source: GrammarSource): Promise<boolean>;
  start(id: number, source: GrammarSource): Promise<void>;
  /** Masks after tokens. */
  accept(tokens: readonly GrammarToken[]): Promise<Int32Array[]>;
  end(id: number): void;
}

/** Maximum spaces in a row between values. */
const SPACES = 16;

/** Creates the compiler. `file`: the contents of tokenizer.json. */
export async function openGrammarProgram(
  tokenizer: Tokenizer,
  { file, vocabulary, stop }: {
    readonly file: object;
    readonly vocabulary: number;
    readonly stop: readonly number[];
  },
): Promise<GrammarProgram> {
  const { xgrammar, messages } = await loadXGrammar();
  // Empty texts are never allowed, unless they are stop tokens.
  const texts = Array.from({ length: vocabulary }, () => "");
  for (const [text, id] of tokenizer.get_vocab(true)) {
    if (id < vocabulary) texts[id] = text;
  }
  for (const [id, { special }] of tokenizer.get_added_tokens_decoder()) {
    if (special && id < vocabulary) texts[id] = "";
  }
  const info = await xgrammar.TokenizerInfo.createTokenizerInfo(
    texts,
    vocabularyKind(file),
    false,
    vocabulary,
    [...stop],
  );
  const compiler = await xgrammar.GrammarCompiler.createGrammarCompiler(info);
  const compile = async (source: GrammarSource): Promise<CompiledGrammar> => {
    messages.length = 0;
    try {
      if (source.kind === "ebnf") {
        return await compiler.compileGrammar(source.text);
      }
      const grammar = await xgrammar.Grammar.fromJSONSchema(
        JSON.stringify(
          source.kind === "schema" ? source.schema : { type: "object" },
        ),
        source.kind === "object" || !source.compact,
        undefined,
        undefined,
        source.kind === "schema",
        SPACES,
      );
      const text = limitSpaces(grammar.toString());
      grammar.dispose();
      return await compiler.compileGrammar(text);
    } catch (error) {
      const said = messages.find((text) => text.startsWith("[FATAL]"));
      throw said ? new Error(reasonOf(said)) : error;
    }
  };
  const matchers = new Map<number, GrammarMatcher>();
  return {
    check: async (source) => {
      const compiled = await compile(source);
      const grammar = compiled.grammar();
      const text = grammar.toString();
      grammar.dispose();
      compiled.dispose();
      return hasFiniteText(text);
    },
    start: async (id, source) => {
      const compiled = await compile(source);
      matchers.set(
        id,
        await xgrammar.GrammarMatcher.createGrammarMatcher(compiled),
      );
      compiled.dispose();
    },
    accept: async (tokens) => {
      const masks: Int32Array[] = [];
      for (const [id, token] of tokens) {
        // A sequence may end before its last token is accepted.
        const matcher = matchers.get(id);
        if (token !== undefined) matcher?.acceptToken(token);
        masks.push(
          !matcher || matcher.isTerminated()
            ? new Int32Array(Math.ceil(vocabulary / 32))
            : await matcher.getNextTokenBitmask(),
        );
      }
      return masks;
    },
    end: (id) => {
      matchers.get(id)?.dispose();
      matchers.delete(id);
    },
  };
}

/** Limits spaces in the rules of values without a schema, to which XGrammar does not apply its limit. */
function limitSpaces(grammar: string): string {
  return grammar.replace(
    /^basic_(array|object).*/gm,
    (rule) => rule.replaceAll("[ \\n\\t]*", `[ \\n\\t]{0,${SPACES}}`),
  );
}

/** The reason in a message, without the place in XGrammar's source and the condition that failed there. */
function reasonOf(message: string): string {
  return message.replace(/^.*?:\d+: /, "")
    .replace(/^Check failed: .*? is false: (?=.)/, "");
}

/**
 * Loads XGrammar, and collects its messages. The package is a script for browsers in a package of modules: as such it
 * sets a global variable, and uses two that only scripts of Node have.
 */
async function loadXGrammar(): Promise<{
  readonly xgrammar: XGrammar;
  readonly messages: string[];
}> {
  const messages: string[] = [];
  console.error = console.warn = (text: unknown) => {
    messages.push(String(text));
  };
  const globals = globalThis as unknown as {
    require: NodeRequire;
    __filename: string;
    xgrammar: XGrammar;
  };
  globals.require = createRequire(import.meta.url);
  globals.__filename = fileURLToPath(import.meta.url);
  await import("@mlc-ai/web-xgrammar");
  return { xgrammar: globals.xgrammar, messages };
}
