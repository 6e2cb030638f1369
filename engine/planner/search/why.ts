/** Explains why a configuration is not the best. */

import { type Machine, placeRanks } from "../../../spec/machine.ts";
import { timeText } from "../../../spec/time_text.ts";
import type { Bottleneck } from "../../../spec/plan_summary.ts";
import type { Parts } from "../simulate/mod.ts";
import { boundOf } from "../summary/predictions.ts";
import type { Found } from "./found.ts";

const WORDS: { readonly [B in Bottleneck]: string } = {
  launch: "launches are",
  arithmetic: "arithmetic is",
  memory: "reading weights and states is",
  disk: "reading experts from disk is",
  exchange: "exchanges",
  waiting: "waiting for ranks with more to do is",
  run: "the host is",
};

/** A sentence. Seconds are device time per token, so that replicas of different sizes compare. */
export function whySlower(found: Found, best: Found, machine: Machine): string {
  const times = perToken(found);
  if (found === best) {
    const bound = boundOf(found.step.step.parts);
    const where = bound === "exchange"
      ? ` ${linkBetween(found, machine)} are`
      : "";
    return `${WORDS[bound]}${where} ${share(found, bound)} of a step`;
  }
  const others = perToken(best);
  const parts = Object.keys(times) as Bottleneck[];
  const worse = parts.reduce((a, b) =>
    times[b] - others[b] > times[a] - others[a] ? b : a
  );
  const where = worse === "exchange"
    ? ` ${linkBetween(found, machine)} are`
    : "";
  return `${WORDS[worse]}${where} ${share(found, worse)} of a step: ${
    timeText(times[worse])
  } of a device for each token, and ${timeText(others[worse])} in the best`;
}

/** Device time per token. */
export function perToken({ step: { of, tokens, step } }: Found): Parts {
  const entries = Object.entries(step.parts)
    .map(([name, seconds]) => [name, seconds * of.ranks / tokens]);
  return Object.fromEntries(entries) as unknown as Parts;
}

function share({ step: { step } }: Found, part: Bottleneck): string {
  return `${Math.round(100 * step.parts[part] / step.seconds)} %`;
}

/** The links through which a replica exchanges. */
function linkBetween({ step }: Found, machine: Machine): string {
  const placements = placeRanks(machine).slice(0, step.of.ranks);
  const count = (of: "host" | "rack") =>
    new Set(placements.map((placement) => placement[of])).size;
  return count("rack") > 1
    ? "between racks"
    : count("host") > 1
    ? "between nodes"
    : "within a node";
}
