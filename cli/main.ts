/** The `switchyard` command: arguments in, an exit code out. */

import { CommanderError } from "commander";
import {
  DataError,
  LowerError,
  MachineError,
  ModelError,
  PlacementError,
  PlanError,
  printable,
} from "../spec/mod.ts";
import {
  formatError,
  PeerError,
  RankCountError,
  rankPlace,
} from "../engine/mod.ts";
import { type CliIo, OutputClosed, processIo } from "./io.ts";
import { createProgram } from "./program.ts";
import { failAsRank, launchedPlace } from "./rank.ts";
import { UsageError } from "./values.ts";

/** Exit codes. */
const DONE = 0, USER = 1, USAGE = 2, MACHINE = 3;

/**
 * Run a command line, without `node` and the script.
 *
 * @returns 0 done, 1 something about the user's model, plan or data, 2 a command line that cannot be understood, 3 the machine cannot do it
 */
export async function main(
  argv: readonly string[],
  io: CliIo = processIo(),
): Promise<number> {
  return await exitCodeOf(io, async () => {
    let code = DONE;
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

/** Run an action; errors become a sentence on standard error and an exit code. */
export async function exitCodeOf(
  io: CliIo,
  action: () => Promise<number>,
  { launched = false } = {},
): Promise<number> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof OutputClosed) return DONE;
    const { code, message: text } = describe(error);
    const message = printable(text);
    const place = rankPlace() ?? (launched ? launchedPlace() : undefined);
    if (place) {
      const consequence = error instanceof PeerError;
      await failAsRank(io, { place, code, message, consequence, launched });
    } else io.err(message);
    return code;
  }
}

function describe(
  error: unknown,
): { readonly code: number; readonly message: string } {
  if (error instanceof UsageError || error instanceof RankCountError) {
    return { code: USAGE, message: error.message };
  }
  if (error instanceof MachineError) {
    return { code: MACHINE, message: error.message };
  }
  if (error instanceof ModelError || error instanceof LowerError) {
    return { code: USER, message: formatError(error) };
  }
  if (
    error instanceof PlacementError || error instanceof PlanError ||
    error instanceof DataError
  ) return { code: USER, message: error.message };
  if (error instanceof RangeError && /allocation failed/.test(error.message)) {
    return {
      code: MACHINE,
      message:
        "Cannot go on: the memory of this machine is used up. Use smaller bounds or a larger mesh",
    };
  }
  const text = error instanceof Error ? error.message : String(error);
  return {
    code: USER,
    message:
      `Cannot go on: an unexpected error, '${text}'. Report this as a bug, with the command`,
  };
}

function usageError(error: CommanderError): UsageError {
  const text = error.message.replace(/^error: /, "").trim().split("\n")[0]!;
  const state = text.replace(/\.$/, "");
  return new UsageError(
    `Cannot run the command: ${state}. See 'switchyard --help'`,
  );
}
