/** Text of a JSON Schema: the grammars of `generate --json-schema`. */

import {
  openGrammars,
  schemaGrammar,
  type TokenGrammar,
} from "../engine/mod.ts";
import { readJsonObject } from "../engine/json_file.ts";
import { DataError } from "../spec/mod.ts";
import type { CliIo } from "./io.ts";

/** A checked schema. */
export interface OpenedSchema {
  /** A grammar for each of some sequences. */
  start(count: number): Promise<TokenGrammar[]>;
  /** Throws the error that ended a grammar, if any. */
  check(): void;
  close(): void;
}

/** Reads a schema and compiles it for the tokens of a checkpoint. Throws DataError if it is not supported. */
export async function openSchema(
  io: CliIo,
  file: string,
  { folder, stop, vocabulary }: {
    readonly folder: string;
    readonly stop: ReadonlySet<number>;
    readonly vocabulary: number;
  },
): Promise<OpenedSchema> {
  const source = schemaGrammar(await readJsonObject(file, io.files));
  const grammars = await openGrammars(folder, io.files, { vocabulary, stop });
  if (!grammars) {
    throw new DataError(
      `Cannot use --json-schema with '${folder}': it has no tokenizer.json. Copy it there`,
    );
  }
  let failed: { readonly error: unknown } | undefined;
  try {
    await grammars.check(source);
    return {
      start: (count) =>
        Promise.all(
          Array.from({ length: count }, () =>
            grammars.start(source, (error) => {
              failed ??= { error };
            })),
        ),
      check: () => {
        if (failed) throw failed.error;
      },
      close: grammars.close,
    };
  } catch (error) {
    grammars.close();
    throw error;
  }
}
