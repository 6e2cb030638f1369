/** `switchyard verify`: check whether a saved plan is legal. */

import { printable, verifyPlanText } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";

/** Verifies a plan document. The exit code is 1 if it is not legal, and the reasons are printed. */
export async function verifyCommand(
  io: CliIo,
  path: string,
  flags: { readonly json?: boolean },
): Promise<number> {
  const { errors } = verifyPlanText(await io.files.readText(path), {
    file: path,
  });
  const ok = errors.length === 0;
  if (flags.json) {
    await io.out(`${JSON.stringify({ ok, errors }, null, 2)}\n`);
  } else if (ok) {
    await io.out(`${path} is legal\n`);
  } else {
    for (const { message } of errors) io.err(printable(message));
  }
  return ok ? 0 : 1;
}
