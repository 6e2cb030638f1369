/** Error messages and exit codes of failed commands. */

import {
  formatError,
  PeerError,
  RankCountError,
  rankIdentity,
} from "../engine/mod.ts";
import {
  DataError,
  LowerError,
  MachineError,
  ModelError,
  PlacementError,
  PlanError,
  printable,
} from "../spec/mod.ts";
import type { CliIo } from "./io.ts";
import { failAsRank, launchedIdentity } from "./launch/rank.ts";
import { UsageError } from "./flags/values.ts";

/** Exit codes. */
const USER = 1, USAGE = 2, MACHINE = 3;

/** Prints an error once for all ranks of a job. Returns the exit code. */
export async function reportFailure(
  io: CliIo,
  error: unknown,
  { launched }: { readonly launched: boolean },
): Promise<number> {
  const { code, message: text } = await describe(error);
  const message = printable(text);
  const identity = rankIdentity() ??
    (launched ? launchedIdentity() : undefined);
  if (identity) {
    const consequence = error instanceof PeerError;
    await failAsRank(io, { identity, code, message, consequence, launched });
  } else io.err(message);
  return code;
}

/** Descriptions of exhausted resources by error code. */
const EXHAUSTED: { readonly [code: string]: string } = {
  EMFILE: "too many files are open. Raise the limit (ulimit -n)",
  ENFILE: "too many files are open on this machine. End other programs",
  ENOMEM: "there is too little memory. Free some",
  EAGAIN: "no more threads or processes can start. Raise the limit (ulimit -u)",
  ERR_WORKER_INIT_FAILED:
    "no more threads or processes can start. Raise the limit (ulimit -u)",
};

async function describe(
  error: unknown,
): Promise<{ readonly code: number; readonly message: string }> {
  if (error instanceof UsageError || error instanceof RankCountError) {
    return { code: USAGE, message: error.message };
  }
  if (error instanceof MachineError) {
    return { code: MACHINE, message: error.message };
  }
  if (error instanceof ModelError || error instanceof LowerError) {
    return { code: USER, message: await formatError(error) };
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
  if (error instanceof Error && "code" in error) {
    const state = EXHAUSTED[String(error.code)];
    if (state) return { code: MACHINE, message: `Cannot go on: ${state}` };
  }
  const text = error instanceof Error ? error.message : String(error);
  return {
    code: USER,
    message:
      `Cannot go on: an unexpected error, '${text}'. Report this as a bug, with the command`,
  };
}
