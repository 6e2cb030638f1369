/** Grammars of untrusted texts, compiled and matched by XGrammar in a sandbox. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import type { Grammars, GrammarSource, TokenGrammar } from "../text/grammar.ts";
import { createMerger } from "./merger.ts";
import { OpenSandbox } from "./open_sandbox.ts";
import { SECONDS, UntrustedError } from "./sandbox.ts";
import { OPENED_A_SECOND } from "./tokenizer.ts";

/** Memory limit of a process in MiB. */
const MEMORY = 1024;

/** CPU seconds to compile a grammar. */
const COMPILE_SECONDS = 10;

/** An accepted token of a grammar; undefined before the first one. */
export type GrammarToken = readonly [id: number, token: number | undefined];

/** The tokenizer of grammars. */
export interface GrammarTokens {
  /** The contents of tokenizer.json and tokenizer_config.json. */
  readonly tokenizer: object;
  readonly config: { readonly [key: string]: unknown };
  /** Characters of tokenizer.json. */
  readonly size: number;
  /** Number of logits. */
  readonly vocabulary: number;
  readonly stop: ReadonlySet<number>;
}

/**
 * Creates grammars for a tokenizer. A grammar that fails may leave XGrammar in an unknown state, so each is compiled by
 * a separate process first, which is restarted after a failure.
 */
export function createGrammars(
  { tokenizer, config, size, vocabulary, stop }: GrammarTokens,
): Grammars {
  const open = () =>
    new OpenSandbox({
      memory: MEMORY,
      open: ["openGrammars", tokenizer, config, {
        vocabulary,
        stop: [...stop],
      }],
      seconds: COMPILE_SECONDS + Math.ceil(size / OPENED_A_SECOND),
    });
  const [checker, matcher] = [open(), open()];
  const next = createMerger(async (tokens: readonly GrammarToken[]) =>
    await matcher.call(
      ["acceptTokens", tokens],
      SECONDS + tokens.length / 100,
    ) as Int32Array[]
  );
  let count = 0;
  return {
    check: async (source) => {
      let fault: string;
      try {
        if (await checker.call(["checkGrammar", source], COMPILE_SECONDS)) {
          return;
        }
        fault = "no finite text follows it";
      } catch (error) {
        checker.restart();
        if (!(error instanceof UntrustedError)) throw error;
        fault = error.state;
      }
      throw new DataError(
        `Cannot use the ${NAMES[source.kind]}: ${
          shown(fault.replace(/[.\s]+$/, ""))
        }. Correct or simplify it`,
      );
    },
    start: async (source, onFail) => {
      const id = count++;
      await matcher.call(["startGrammar", id, source], COMPILE_SECONDS);
      const accept = (token?: number) =>
        next([id, token]).catch((error: unknown) => {
          onFail(error);
          return undefined;
        });
      let allowed: ReturnType<TokenGrammar["allowed"]> = accept();
      return {
        allowed: () => allowed,
        // The next mask is computed during the next step.
        accept: (token) => {
          allowed = accept(token);
        },
        close: () => {
          matcher.call(["endGrammar", id]).catch(() => {});
        },
      };
    },
    close: () => {
      checker.close();
      matcher.close();
    },
  };
}

const NAMES: { readonly [K in GrammarSource["kind"]]: string } = {
  object: "grammar of JSON objects",
  schema: "JSON Schema",
  ebnf: "grammar",
};
