/** Messages from ranks and their shells to `launch` on standard error. They begin with a reserved character. */

/** The failure of a rank. */
export interface RankFailure {
  readonly rank: number;
  readonly host: string;
  /** The exit code of its process. A code above 128 means a signal. */
  readonly code: number;
  /** The current step, such as `in step 'dispatch'`. Empty if unknown. */
  readonly step: string;
  /** The rank's message. Undefined for a rank without a message, such as a killed process. */
  readonly message?: string;
  /** Another rank is the cause, as far as this one can determine. */
  readonly consequence?: boolean;
}

/** The process of a rank. */
export interface RankProcess {
  readonly rank: number;
  readonly host: string;
  readonly pid: number;
}

/** A rank that a signal stopped, such as SIGSTOP. */
export interface StoppedRank {
  readonly rank: number;
  readonly host: string;
  /** Duration of the stop so far. 0: it has resumed. */
  readonly seconds: number;
  /** The current step, such as `in step 'dispatch'`. Empty if unknown. */
  readonly step: string;
}

/** The contents of such a line. */
export type RankLine =
  | { readonly kind: "started"; readonly process: RankProcess }
  | { readonly kind: "begun" }
  | { readonly kind: "stopped"; readonly stopped: StoppedRank }
  | { readonly kind: "failed"; readonly failure: RankFailure };

/** The first character of such a line. */
export const FIRST = "\x1e";

/** The exit code for limits of the machine. */
const MACHINE = 3;

/** Maximum length. Longer lines may be mixed with lines of other ranks. */
const LONGEST = 3000;

/** Returns the line of rank 0 before its first training step. After it, rank 0 can stop after a step. */
export function begunLine(): string {
  return `${FIRST}begun `;
}

/** Returns the line of a rank that fails. */
export function failedLine(failure: RankFailure): string {
  const message = failure.message?.slice(0, LONGEST);
  return `${FIRST}failed ${
    JSON.stringify({ ...failure, ...message === undefined ? {} : { message } })
  }`;
}

/** Reads a line from `begunLine`, `failedLine` or bin/rank.sh. Undefined for other text. */
export function parseRankLine(line: string): RankLine | undefined {
  if (!line.startsWith(FIRST)) return undefined;
  const [, kind, rest = ""] = /^(\w+) (.*)$/s.exec(line.slice(1)) ?? [];
  if (kind === "failed") {
    return { kind, failure: JSON.parse(rest) as RankFailure };
  }
  const [rank, host, number, ...words] = rest.trim().split(" ");
  const identity = { rank: Number(rank), host: host! };
  const step = words.join(" ");
  switch (kind) {
    case "begun":
      return { kind };
    case "started":
      return { kind, process: { ...identity, pid: Number(number) } };
    case "stopped":
      return { kind, stopped: { ...identity, seconds: Number(number), step } };
    case "ended":
      return {
        kind: "failed",
        failure: { ...identity, code: Number(number), step },
      };
    default:
      return undefined;
  }
}

/** Exit codes of signals that end ranks after another rank failed. */
const ENDED_BY_OTHERS = [1, 2, 15].map((signal) => 128 + signal);

/** Returns how likely a failure was caused by another rank. */
function doubt({ code, message, consequence }: RankFailure): number {
  if (consequence) return 2;
  if (message !== undefined) return 0;
  if (ENDED_BY_OTHERS.includes(code)) return 3;
  // Open MPI ends a process without a message after another one has ended.
  return code > 128 ? 0 : 1;
}

/** Returns the original failure among all, in the order of their reports. */
export function culprit(
  failures: readonly RankFailure[],
): RankFailure | undefined {
  const spoke = new Set(
    failures.filter(({ message }) => message !== undefined)
      .map(({ rank }) => rank),
  );
  // The report of a rank's shell adds nothing to the rank's own message.
  const reported = failures.filter(({ rank, message }) =>
    message !== undefined || !spoke.has(rank)
  );
  const [first] = reported.toSorted((a, b) => doubt(a) - doubt(b));
  // An error of every rank is reported by the lowest one.
  return reported.filter(({ message }) => message === first?.message)
    .sort((a, b) => a.rank - b.rank)
    .find(({ message }) => message !== undefined) ?? first;
}

/** Formats a failure as a sentence. */
export function describeFailure(failure: RankFailure): string {
  const { rank, host, code, step, message } = failure;
  const where = `rank ${rank} on ${host}`;
  if (message !== undefined) {
    const [, what] = /^(?:in|after) (step .*)$/.exec(step) ?? [];
    return what === undefined || message.includes(what)
      ? `${where}: ${message}`
      : `${where} ${step}: ${message}`;
  }
  const how = code > 128
    ? `was killed by signal ${code - 128}`
    : `ended with exit code ${code}`;
  return `Cannot finish: ${where} ${how}${
    step === "" ? "" : ` ${step}`
  }. Start the command again`;
}

/** The reports of a job's ranks and their shells. */
export interface Reported {
  readonly started: readonly RankProcess[];
  readonly failures: readonly RankFailure[];
  /** By rank. */
  readonly stopped: ReadonlyMap<number, StoppedRank>;
}

/** Formats the cause of a job's end as a sentence, as far as it was reported. */
export function describeEnd(
  { failures, started, stopped }: Reported,
): { readonly text: string; readonly code: number } | undefined {
  const failure = culprit(failures);
  const [still] = [...stopped.values()].sort((a, b) => b.seconds - a.seconds);
  // Other ranks wait for a stopped rank, and the end of the job ends it.
  if (
    still &&
    (!failure || doubt(failure) > 0 || stopped.has(failure.rank))
  ) {
    return { text: describeStop(still), code: MACHINE };
  }
  if (!failure) return undefined;
  const { message, code, consequence } = failure;
  const text = describeFailure(failure);
  if (message === undefined) return { text, code: MACHINE };
  const silent = started.filter(({ rank }) =>
    !failures.some((other) => other.rank === rank && other.message)
  ).map(({ rank, host }) => `rank ${rank} on ${host}`);
  return {
    text: consequence && silent.length > 0
      ? `${text}. Nothing was heard from ${silent.join(" and ")}`
      : text,
    code,
  };
}

function describeStop({ rank, host, step }: StoppedRank): string {
  return `Cannot finish: a signal stopped rank ${rank} on ${host}${
    step === "" ? "" : ` ${step}`
  }, and nobody continued it. Start the command again`;
}
