/** What ranks, and the shells they run under, tell `launch` on standard error: lines that begin like no other text. */

/** How a rank failed. */
export interface RankFailure {
  readonly rank: number;
  readonly host: string;
  /** The exit code of its process; above 128 that of a signal. */
  readonly code: number;
  /** Where it was, such as `in step 'dispatch'`; empty where that is not known. */
  readonly step: string;
  /** What it said; undefined: nothing, as a process that is killed. */
  readonly message?: string;
  /** Another rank is the cause, as far as this one can tell. */
  readonly consequence?: boolean;
}

/** A rank's process. */
export interface RankProcess {
  readonly rank: number;
  readonly host: string;
  readonly pid: number;
}

/** A rank that a signal has stopped, such as SIGSTOP. */
export interface StoppedRank {
  readonly rank: number;
  readonly host: string;
  /** For how long so far; 0: it goes on. */
  readonly seconds: number;
  /** Where it is, such as `in step 'dispatch'`; empty if unknown. */
  readonly step: string;
}

/** What is in such a line. */
export type RankLine =
  | { readonly kind: "started"; readonly process: RankProcess }
  | { readonly kind: "begun" }
  | { readonly kind: "stopped"; readonly stopped: StoppedRank }
  | { readonly kind: "failed"; readonly failure: RankFailure };

/** What such a line begins with. */
export const FIRST = "\x1e";

/** The exit code of what a machine cannot do. */
const MACHINE = 3;

/** Longer lines may be mixed up with those of other ranks on their way. */
const LONGEST = 3000;

/** What rank 0 says before its first step of training: from here on it can stop after a step. */
export function begunLine(): string {
  return `${FIRST}begun `;
}

/** What a rank says when it fails. */
export function failedLine(failure: RankFailure): string {
  const message = failure.message?.slice(0, LONGEST);
  return `${FIRST}failed ${
    JSON.stringify({ ...failure, ...message === undefined ? {} : { message } })
  }`;
}

/** Read a line of `begunLine`, of `failedLine` or of bin/rank.sh; undefined: it is other text. */
export function parseRankLine(line: string): RankLine | undefined {
  if (!line.startsWith(FIRST)) return undefined;
  const [, kind, rest = ""] = /^(\w+) (.*)$/s.exec(line.slice(1)) ?? [];
  if (kind === "failed") {
    return { kind, failure: JSON.parse(rest) as RankFailure };
  }
  const [rank, host, number, ...words] = rest.trim().split(" ");
  const place = { rank: Number(rank), host: host! };
  const step = words.join(" ");
  switch (kind) {
    case "begun":
      return { kind };
    case "started":
      return { kind, process: { ...place, pid: Number(number) } };
    case "stopped":
      return { kind, stopped: { ...place, seconds: Number(number), step } };
    case "ended":
      return {
        kind: "failed",
        failure: { ...place, code: Number(number), step },
      };
    default:
      return undefined;
  }
}

/** Signals by which ranks are ended because another one failed. */
const ENDED_BY_OTHERS = [1, 2, 15].map((signal) => 128 + signal);

/** How likely it is that a failure follows from that of another rank. */
function doubt({ code, message, consequence }: RankFailure): number {
  if (consequence) return 2;
  if (message !== undefined) return 0;
  if (ENDED_BY_OTHERS.includes(code)) return 3;
  // Open MPI ends a process without a word when another one is gone.
  return code > 128 ? 0 : 1;
}

/** The failure that the others follow from, of all in the order they were reported. */
export function culprit(
  failures: readonly RankFailure[],
): RankFailure | undefined {
  const spoke = new Set(
    failures.filter(({ message }) => message !== undefined)
      .map(({ rank }) => rank),
  );
  // What the shell of a rank sees of its end adds nothing to the rank's own words.
  const reported = failures.filter(({ rank, message }) =>
    message !== undefined || !spoke.has(rank)
  );
  const [first] = reported.toSorted((a, b) => doubt(a) - doubt(b));
  // What is wrong with every rank is said by the lowest.
  return reported.filter(({ message }) => message === first?.message)
    .sort((a, b) => a.rank - b.rank)
    .find(({ message }) => message !== undefined) ?? first;
}

/** A failure in a sentence. */
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

/** What ranks, and their shells, reported of a job. */
export interface Reported {
  readonly started: readonly RankProcess[];
  readonly failures: readonly RankFailure[];
  /** By rank. */
  readonly stopped: ReadonlyMap<number, StoppedRank>;
}

/** Who is the cause of a job's end, in a sentence, as far as ranks reported. */
export function describeEnd(
  { failures, started, stopped }: Reported,
): { readonly text: string; readonly code: number } | undefined {
  const failure = culprit(failures);
  const [still] = [...stopped.values()].sort((a, b) => b.seconds - a.seconds);
  // Others miss a rank that is stopped, and it is ended by whoever ends the job.
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
