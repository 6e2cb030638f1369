/** Grammars that restrict generated text. */

import { withPrefixItems } from "./json_schema.ts";

/** A grammar: any JSON object, JSON of a schema, or a text in the EBNF of XGrammar, whose first rule is `root`. */
export type GrammarSource =
  | { readonly kind: "object" }
  | {
    readonly kind: "schema";
    readonly schema: object;
    /** Whether spaces and lines are the same in each text. Default: false, the model chooses them. */
    readonly compact?: boolean;
  }
  | { readonly kind: "ebnf"; readonly text: string };

/** The tokens of one sequence that a grammar allows. */
export interface TokenGrammar {
  /**
   * Tokens that may follow the accepted ones: token t is bit t % 32 of word t / 32. Undefined if the grammar has
   * failed.
   */
  allowed(): Promise<Int32Array | undefined>;
  /** Adds a token that is allowed. */
  accept(token: number): void;
  /** Frees its memory. */
  close(): void;
}

/** Compiles grammars for the tokens of a checkpoint. */
export interface Grammars {
  /** Throws DataError for a text that is no grammar, and for one that exceeds limits of time or memory. */
  check(source: GrammarSource): Promise<void>;
  /** Starts a grammar that `check` accepts. `onFail` is called if it exceeds limits later. */
  start(
    source: GrammarSource,
    onFail: (error: unknown) => void,
  ): Promise<TokenGrammar>;
  /** Terminates its processes. */
  close(): void;
}

/** The grammar of JSON of a schema. */
export function schemaGrammar(schema: object): GrammarSource {
  return { kind: "schema", schema: withPrefixItems(schema) };
}
