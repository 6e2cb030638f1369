/** The `switchyard` command: converts arguments to an exit code. */

import { type Command, CommanderError } from "commander";
import { type CliIo, Interrupted, OutputClosed, processIo } from "./io.ts";
import {
  commandFor,
  isSplit,
  remedyFor,
  secondArgumentFor,
} from "./flags/other_names.ts";
import { createProgram } from "./program.ts";
import { UsageError } from "./flags/values.ts";
import { nearName } from "../spec/near_name.ts";

/** The parser's code of unknown options. */
const UNKNOWN_OPTION = "commander.unknownOption";

/**
 * Runs a command line, given without `node` and the script.
 *
 * @returns 0 success, 1 an error in the user's model, plan or data, 2 an invalid command line, 3 a limit of the machine,
 * 128 + N interrupted by signal N
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
      if (split !== undefined) {
        program.error(`unknown option '${split}'`, { code: UNKNOWN_OPTION });
      }
      await program.parseAsync([...argv], { from: "user" });
    } catch (error) {
      if (!(error instanceof CommanderError)) throw error;
      const command = program.commands.find((c) => c.name() === argv[0]);
      if (error.exitCode !== 0) {
        const unknown = error.code === UNKNOWN_OPTION
          ? unknownOptions(io, argv)
          : [];
        throw usageError(error, command, unknown);
      }
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
    if (error instanceof Interrupted) return 128 + error.signal;
    const { reportFailure } = await import("./failure.ts");
    return await reportFailure(io, error, { launched });
  }
}

/** Returns the unknown options of a command line, in its order. */
function unknownOptions(io: CliIo, argv: readonly string[]): string[] {
  const end = argv.indexOf("--");
  const own = argv.slice(1, end < 0 ? undefined : end);
  // A new program: the first one has already collected options that may be given once.
  const program = createProgram(io, { finish: () => {}, print: () => {} });
  const command = program.commands.find((c) => c.name() === argv[0]);
  const known = own.filter((one) => !isSplit(one));
  const unknown = command?.parseOptions(known).unknown ?? [];
  // A value of an unknown option may be a negative number.
  const names = own.filter((one) =>
    isSplit(one) || unknown.includes(one) && /^-\D/.test(one)
  );
  return [...new Set(names)];
}

/** A rejected command line, with a remedy. `command`: undefined if there is none of that name. */
function usageError(
  error: CommanderError,
  command: Command | undefined,
  unknown: readonly string[],
): UsageError {
  const [text, hint = ""] = error.message.replace(/^error: /, "").trim()
    .split("\n");
  const state = text!.replace(/\.$/, "");
  const options = command?.options.flatMap(({ long }) => long ?? []) ?? [];
  const argument = command?.registeredArguments[0]?.name();
  const [, kind, name = ""] = /^unknown (option|command) '(.*)'$/.exec(state) ??
    [];
  const [, near] = /^\(Did you mean (.*)\?\)$/.exec(hint) ?? [];
  const words = command ? `switchyard ${command.name()}` : "switchyard";
  const see = (remedy: string | undefined) =>
    `${remedy === undefined ? "See" : `${remedy}, or see`} '${words} --help'`;
  if (kind === "option" && unknown.length > 1) {
    const remedies = unknown.flatMap((one) => {
      const near = nearName(one.replace(/=.*/s, ""), options);
      const remedy = remedyFor(one, { options, argument }) ??
        (near && `Give ${near}`);
      return remedy === undefined
        ? []
        : [`for '${one}', ${remedy[0]!.toLowerCase()}${remedy.slice(1)}`];
    });
    return new UsageError(
      `Cannot run the command: unknown options ${
        unknown.map((one) => `'${one}'`).join(", ")
      }. ${
        see(
          remedies.length === 0
            ? undefined
            : remedies.join("; ").replace(/^f/, "F"),
        )
      }`,
    );
  }
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
  return new UsageError(`Cannot run the command: ${state}. ${see(remedy)}`);
}
