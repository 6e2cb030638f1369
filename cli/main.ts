/** The `switchyard` command: converts arguments to an exit code. */

import { CommanderError } from "commander";
import { type CliIo, OutputClosed, processIo } from "./io.ts";
import { createProgram } from "./program.ts";
import { UsageError } from "./values.ts";

/**
 * Runs a command line, given without `node` and the script.
 *
 * @returns 0 success, 1 an error in the user's model, plan or data, 2 an invalid command line, 3 a limit of the machine
 */
export async function main(
  argv: readonly string[],
  io: CliIo = processIo(),
): Promise<number> {
  return await exitCodeOf(io, async () => {
    let code = 0;
    const printed: string[] = [];
    const program = createProgram(io, {
      finish: (result) => {
        code = result;
      },
      print: (text) => {
        printed.push(text);
      },
    });
    if (argv.length === 0) {
      throw new UsageError(
        "Cannot run 'switchyard': there is no command. See 'switchyard --help'",
      );
    }
    try {
      await program.parseAsync([...argv], { from: "user" });
    } catch (error) {
      if (!(error instanceof CommanderError)) throw error;
      if (error.exitCode !== 0) throw usageError(error);
      await io.out(printed.join(""));
    }
    return code;
  }, { launched: argv.includes("--job") });
}

/** Runs an action. Errors become a message on standard error and an exit code. */
export async function exitCodeOf(
  io: CliIo,
  action: () => Promise<number>,
  { launched = false } = {},
): Promise<number> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof OutputClosed) return 0;
    const { reportFailure } = await import("./failure.ts");
    return await reportFailure(io, error, { launched });
  }
}

function usageError(error: CommanderError): UsageError {
  const [text, hint = ""] = error.message.replace(/^error: /, "").trim()
    .split("\n");
  const state = text!.replace(/\.$/, "");
  const [, meant] = /^\(Did you mean (.*)\?\)$/.exec(hint) ?? [];
  const remedy = meant === undefined ? "See" : `Give ${meant}, or see`;
  return new UsageError(
    `Cannot run the command: ${state}. ${remedy} 'switchyard --help'`,
  );
}
