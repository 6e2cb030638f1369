/**
 * A process as a rank of an MPI job: it joins, records its step for the shell that started it, and reports its failure
 * to the others.
 */

import { fstatSync, openSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import process from "node:process";
import { joinJob, type RankIdentity, rankIdentity } from "../../engine/mod.ts";
import type { DeviceFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { launchedRank } from "./launched_rank.ts";
import { describeFailure, failedLine } from "./rank_lines.ts";

/** Time that the job waits for rank 0 to report an error of every rank. */
const AFTER_RANK_ZERO_MS = 500;

/** Time that a rank waits for the cause from another rank that failed it. */
const AFTER_CULPRIT_MS = 2000;

/** Joins the MPI job that started this process. */
export async function joinAsRank(
  io: CliIo,
  { job, deadline }: DeviceFlags,
): Promise<void> {
  await joinJob({
    ...deadline === undefined ? {} : { deadlineMs: 1000 * deadline },
    ...job === undefined ? {} : noteSteps(),
    left: (code) => {
      if (UNNOTICED.includes(code)) sayLeft(io, job !== undefined);
    },
  });
}

/** Exit codes of Node for a program that ended without an error, either by itself or because no work was left. */
const UNNOTICED = [0, 13];

/** Reports that this process ends before its job. There is no time to wait for others. */
function sayLeft(io: CliIo, launched: boolean): void {
  const failure = {
    ...launchedIdentity(),
    ...rankIdentity(),
    code: 1,
    message:
      "Cannot go on: the program ended before its job did. Report this as a bug, with the command",
  };
  io.err(launched ? failedLine(failure) : describeFailure(failure));
}

/**
 * Records the current step of this rank for the processes that survive it. Under rank.sh, standard input is a file for
 * these records.
 */
function noteSteps(): { note?(step: string): void } {
  if (!fstatSync(0).isFile()) return {};
  // Deno opens its standard input read-only.
  const file = "deno" in process.versions ? openSync("/dev/fd/0", "r+") : 0;
  return { note: (step) => void writeSync(file, `${step}\n`, 0) };
}

/** Returns the rank that the launcher assigned to this process, before joining. */
export function launchedIdentity(): RankIdentity {
  return { rank: launchedRank(), host: hostname(), step: "" };
}

/** The error of a rank. */
export interface RankError {
  readonly identity: RankIdentity;
  readonly code: number;
  readonly message: string;
  /** Another rank is the cause. */
  readonly consequence: boolean;
  /** `launch` is notified and prints the error. Without it, this process prints it. */
  readonly launched: boolean;
}

/**
 * Reports an error once in the whole job, and leaves the other ranks time to add details. Rank 0 reports an error of
 * every rank. If one rank caused the failures of others, that rank reports the error.
 */
export async function failAsRank(
  io: CliIo,
  { identity, launched, ...error }: RankError,
): Promise<void> {
  const failure = { ...identity, ...error };
  if (launched) io.err(failedLine(failure));
  const wait = error.consequence
    ? AFTER_CULPRIT_MS
    : identity.rank > 0
    ? AFTER_RANK_ZERO_MS
    : 0;
  await new Promise((resolve) => setTimeout(resolve, wait));
  if (!launched) io.err(describeFailure(failure));
}
