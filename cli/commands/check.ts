/** `switchyard check`: the mistakes of a model, with code frames. */

import {
  checkTarget,
  type Diagnostic,
  formatDiagnostic,
} from "../../engine/mod.ts";
import { printable } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";

/** Check a model file or a checkpoint folder; exit code 1 if there are mistakes. */
export async function checkCommand(
  io: CliIo,
  model: string,
  flags: { readonly json?: boolean },
): Promise<number> {
  const found = await checkTarget(model, io.files);
  const ok = found.length === 0;
  if (flags.json) {
    const errors = found.map(toJson);
    await io.out(`${JSON.stringify({ ok, errors }, null, 2)}\n`);
  } else if (ok) {
    await io.out(`${model} has no mistakes\n`);
  } else {
    for (const diagnostic of found) {
      io.err(printable(formatDiagnostic(diagnostic)));
    }
  }
  return ok ? 0 : 1;
}

function toJson({ message, span, code }: Diagnostic): object {
  return {
    message,
    ...span ? { file: span.file, line: span.line, column: span.column } : {},
    ...code === undefined ? {} : { code },
  };
}
