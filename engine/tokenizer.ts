/** Text to token ids and back, by the checkpoint's own tokenizer.json. */

import { DataError } from "../spec/errors.ts";
import { shown } from "../spec/shown.ts";
import {
  Sandbox,
  SECONDS,
  type Task,
  UntrustedError,
} from "./untrusted/sandbox.ts";

/** What the engine needs of a tokenizer. */
export interface Tokenizer {
  /** Ids of a text, with the special tokens that the tokenizer puts around it. */
  encode(text: string): Promise<number[]>;
  /** Ids of a text and nothing else, where the text spells out its special tokens. */
  encodeBare(text: string): Promise<number[]>;
  /** The text of tokens; special tokens such as an end of text have none. */
  decode(tokens: readonly number[]): Promise<string>;
  /** The text of tokens, special tokens spelled out. */
  decodeAll(tokens: readonly number[]): Promise<string>;
  /** End its process. */
  close(): void;
}

/** MiB that a tokenizer may take. Large ones have some hundred thousand entries. */
const MEMORY = 1024;

/** Characters for which encoding gets another second. */
const CHARACTERS_A_SECOND = 100_000;

/** Tokens for which decoding gets another second. */
const TOKENS_A_SECOND = 10_000;

/** Characters of a tokenizer.json for which opening gets another second. */
const OPENED_A_SECOND = 500_000;

/**
 * Make a tokenizer from the texts of `tokenizer.json` and `tokenizer_config.json`, which a stranger may have written: it
 * works in a sandbox. Throws DataError where it fails or takes too much time or memory, here and whenever it is used.
 *
 * @param folder where they came from, for messages
 */
export async function createTokenizer(
  files: { readonly tokenizer: object; readonly config: object },
  { folder, size }: {
    readonly folder: string;
    /** Characters of tokenizer.json. */
    readonly size: number;
  },
): Promise<Tokenizer> {
  const sandbox = new Sandbox({ memory: MEMORY });
  const call = async (verb: string, call: Call, extra: number) => {
    const [task, ...args] = call;
    try {
      return await sandbox.call(task, args, SECONDS + Math.ceil(extra));
    } catch (error) {
      if (!(error instanceof UntrustedError)) throw error;
      sandbox.close();
      throw new DataError(
        `Cannot ${verb} the tokenizer of '${folder}': ${
          shown(error.state.replace(/[.\s]+$/, ""))
        }. Check tokenizer.json`,
      );
    }
  };
  const encode = async (text: string, special: boolean) =>
    await call(
      "use",
      ["encode", text, special],
      text.length / CHARACTERS_A_SECOND,
    ) as number[];
  const decode = async (tokens: readonly number[], skip: boolean) =>
    await call(
      "use",
      ["decode", [...tokens], skip],
      tokens.length / TOKENS_A_SECOND,
    ) as string;
  await call(
    "read",
    ["openTokenizer", files.tokenizer, files.config],
    size / OPENED_A_SECOND,
  );
  return {
    encode: (text) => encode(text, true),
    encodeBare: (text) => encode(text, false),
    decode: (tokens) => decode(tokens, true),
    decodeAll: (tokens) => decode(tokens, false),
    close: () => sandbox.close(),
  };
}

/** A task and its arguments. */
type Call = readonly [Task, ...unknown[]];

/**
 * Text that grows with its tokens. A token can end in the middle of a character, so a piece is only
 * given out once it can no longer change. Each piece is decoded behind the one before it, since some
 * tokenizers drop a leading space.
 */
export class TextStream {
  #tokenizer: Tokenizer;
  #tokens: number[] = [];
  #before = 0;
  #given = 0;
  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** The text that `token` completes, often empty, never a broken character. */
  async push(token: number): Promise<string> {
    this.#tokens.push(token);
    const text = await this.#decode(this.#tokens.length);
    if (text.endsWith("\ufffd")) return "";
    const piece = text.slice((await this.#decode(this.#given)).length);
    this.#before = this.#given;
    this.#given = this.#tokens.length;
    return piece;
  }

  /** What was still held back. */
  async end(): Promise<string> {
    const text = await this.#decode(this.#tokens.length);
    return text.slice((await this.#decode(this.#given)).length);
  }

  #decode(end: number): Promise<string> {
    return this.#tokenizer.decode(this.#tokens.slice(this.#before, end));
  }
}
