/** Reports of a loop to the routes: collected tokens and endings, and failures. */

import type { TokenRecord } from "../generation/sequence.ts";
import type { Logprobs } from "../generation/sampling.ts";
import type {
  LoopPort,
  Report,
  SentEnding,
  TokenDetails,
} from "./loop_messages.ts";

/** Collects the tokens and endings of steps. */
export interface LoopReports {
  /** Number of sequences that ended since the last report. */
  readonly ended: number;
  /** Time of the last report, in milliseconds. */
  readonly reported: number;
  /** Adds a token of a sequence that does not wait. */
  token(id: number, token: number): void;
  /** Index of the next token in its message. */
  readonly next: number;
  /** Adds details of a token. */
  details(details: TokenDetails): void;
  ending(ending: SentEnding): void;
  /** Sends the collected tokens and endings, if there are any. */
  send(): void;
  /** Sends the collected tokens and endings, then the failure of sequence `id`, or of the loop without `id`. */
  fail(error: unknown, id?: number): void;
}

/** Whether a token has details to report. */
export function hasDetails(
  logprobs: Logprobs | undefined,
  { hash, experts, cached }: TokenRecord,
): boolean {
  return Boolean(logprobs || hash || experts || cached);
}

/** Creates empty reports. */
export function collectReports(
  port: LoopPort,
  { now }: { readonly now: () => number },
): LoopReports {
  let tokens: number[] = [];
  let details: TokenDetails[] = [];
  let endings: SentEnding[] = [];
  let reported = now();
  const send = (report: Report) => port.send(report);
  const reports: LoopReports = {
    get ended() {
      return endings.length;
    },
    get reported() {
      return reported;
    },
    get next() {
      return tokens.length / 2;
    },
    token: (id, token) => tokens.push(id, token),
    details: (one) => details.push(one),
    ending: (one) => endings.push(one),
    send: () => {
      if (tokens.length + endings.length === 0) return;
      reported = now();
      send({
        kind: "tokens",
        tokens: Float64Array.from(tokens),
        details,
        endings,
      });
      [tokens, details, endings] = [[], [], []];
    },
    fail: (error, id) => {
      reports.send();
      send({
        kind: "failed",
        message: error instanceof Error ? error.message : String(error),
        ...id === undefined ? {} : { id },
      });
    },
  };
  return reports;
}
