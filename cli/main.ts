/** The `switchyard` command: converts arguments to an exit code. */

import { type Command, CommanderError } from "commander";
import { type CliIo, OutputClosed, processIo } from "./io.ts";
import {
  commandFor,
  isSplit,
  remedyFor,
  secondArgumentFor,
} from "./flags/other_names.ts";
import { createProgram } from "./program.ts";
import { UsageError } from "./flags/values.ts";

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
      const split = argv.find(isSplit);
      if (split !== undefined) program.error(`unknown option '${split}'`);
      await program.parseAsync([...argv], { from: "user" });
    } catch (error) {
      if (!(error instanceof CommanderError)) throw error;
      const command = program.commands.find((c) => c.name() === argv[0]);
      if (error.exitCode !== 0) throw usageError(error, command);
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

/** A rejected command line, with a remedy. `command`: undefined if there is none of that name. */
function usageError(
  error: CommanderError,
  command: Command | undefined,
): UsageError {
  const [text, hint = ""] = error.message.replace(/^error: /, "").trim()
    .split("\n");
  const state = text!.replace(/\.$/, "");
  const options = command?.options.flatMap(({ long }) => long ?? []) ?? [];
  const argument = command?.registeredArguments[0]?.name();
  const [, kind, name = ""] = /^unknown (option|command) '(.*)'$/.exec(state) ??
    [];
  const [, near] = /^\(Did you mean (.*)\?\)$/.exec(hint) ?? [];
  const meant = kind === "command"
    ? commandFor(name)
    : state.startsWith("too many arguments")
    ? secondArgumentFor(options)
    : undefined;
  const given = meant ?? (near === "--help" ? undefined : near);
  const known = kind === "option"
    ? remedyFor(name, { options, argument })
    : undefined;
  const remedy = known ?? (given === undefined ? undefined : `Give ${given}`);
  const words = command ? `switchyard ${command.name()}` : "switchyard";
  return new UsageError(
    `Cannot run the command: ${state}. ${
      remedy === undefined ? "See" : `${remedy}, or see`
    } '${words} --help'`,
  );
}
