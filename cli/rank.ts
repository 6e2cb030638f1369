/** A process as a rank of an MPI job: it joins, notes its step for the shell it runs under, and fails so that others learn why. */

import { fstatSync, openSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import process from "node:process";
import { joinJob, type RankPlace, rankPlace } from "../engine/mod.ts";
import type { DeviceFlags } from "./flags.ts";
import type { CliIo } from "./io.ts";
import { describeFailure, failedLine } from "./rank_lines.ts";

/** How long the job waits for rank 0 to say what is wrong with every rank. */
const AFTER_RANK_ZERO_MS = 500;

/** How long a rank that another one let down waits for that one to say why. */
const AFTER_CULPRIT_MS = 2000;

/** Become a rank of the MPI job that this process was started in. */
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

/** Exit codes of Node for a program that ended without an error, of its own accord or because nothing was left to wait for. */
const UNNOTICED = [0, 13];

/** Say that this process ends before its job does. There is no time to wait for others. */
function sayLeft(io: CliIo, launched: boolean): void {
  const failure = {
    ...launchedPlace(),
    ...rankPlace(),
    code: 1,
    message:
      "Cannot go on: the program ended before its job did. Report this as a bug, with the command",
  };
  io.err(launched ? failedLine(failure) : describeFailure(failure));
}

/** Notes where this rank is, for whoever survives it: under rank.sh the standard input is a file for notes. */
function noteSteps(): { note?(step: string): void } {
  if (!fstatSync(0).isFile()) return {};
  // Deno opens its standard input to be read only.
  const file = "deno" in process.versions ? openSync("/dev/fd/0", "r+") : 0;
  return { note: (step) => void writeSync(file, `${step}\n`, 0) };
}

/** Which rank the launcher says that this process is, before it has joined. */
export function launchedPlace(): RankPlace {
  const rank = process.env["OMPI_COMM_WORLD_RANK"] ?? process.env["PMI_RANK"];
  return { rank: Number(rank ?? 0), host: hostname(), step: "" };
}

/** What is wrong with a rank. */
export interface RankError {
  readonly place: RankPlace;
  readonly code: number;
  readonly message: string;
  /** Another rank is the cause. */
  readonly consequence: boolean;
  /** `launch` is notified, and says it; without it this process does. */
  readonly launched: boolean;
}

/**
 * Say what is wrong, once in the whole job, and leave the others the time to say more: what is wrong with every rank is
 * said by rank 0, what follows from the failure of another rank by that one.
 */
export async function failAsRank(
  io: CliIo,
  { place, launched, ...error }: RankError,
): Promise<void> {
  const failure = { ...place, ...error };
  if (launched) io.err(failedLine(failure));
  const wait = error.consequence
    ? AFTER_CULPRIT_MS
    : place.rank > 0
    ? AFTER_RANK_ZERO_MS
    : 0;
  await new Promise((resolve) => setTimeout(resolve, wait));
  if (!launched) io.err(describeFailure(failure));
}
