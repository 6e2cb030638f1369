/** The JSON Schema of a plan's summary, as data. `plan_summary.schema.json` is this, written out. */

import type { Bottleneck, Phase } from "../plan_summary.ts";
import { closed, record, type Schema } from "./plan_schema.ts";

const count: Schema = { type: "integer", minimum: 0 };
const amount: Schema = { type: "number", minimum: 0 };
const text: Schema = { type: "string" };

function list(items: Schema): Schema {
  return { type: "array", items };
}

const BOTTLENECKS: readonly Bottleneck[] = [
  ...["launch", "arithmetic", "memory", "exchange", "waiting", "run"] as const,
];
const PHASES: readonly Phase[] = ["prefill", "decode", "train", "step"];

const bound: Schema = { enum: [...BOTTLENECKS] };

function byPhase(what: Schema): Schema {
  return closed({}, Object.fromEntries(PHASES.map((name) => [name, what])));
}

/** What `plan --json` prints. */
export const planSummarySchema: Schema = {
  $schema: "http://json-schema.org/draft-07/schema#",
  title: "Summary of a Switchyard plan",
  ...closed({
    model: closed(
      { parameters: count, bytes: count, stored: record(count) },
      { activeParameters: count },
    ),
    mesh: record(count),
    bounds: record(count),
    ranks: list(closed({
      count,
      first: count,
      bytes: closed({
        weights: count,
        state: count,
        scratch: count,
        staging: count,
        total: count,
      }),
      experts: count,
    }, { limit: count, headroom: { type: "integer" } })),
    layers: list(closed({
      count,
      kind: { enum: ["experts", "dense", "vocabulary"] },
      layers: text,
      flopsPerToken: count,
      exchanges: list(closed({
        name: { enum: ["dispatch", "combine"] },
        bytesPerToken: count,
        over: list(text),
      })),
    }, {
      seconds: byPhase(closed({ total: amount, exchange: amount, bound })),
    })),
    problems: list(closed({ what: text, mend: text })),
    notes: list(text),
  }, {
    target: text,
    predicted: byPhase(closed({
      tokens: count,
      sequences: count,
      past: count,
      seconds: amount,
      tokensPerSecond: amount,
      bound,
      parts: closed(
        Object.fromEntries(BOTTLENECKS.map((name) => [name, amount])),
      ),
      exact: { type: "boolean" },
    })),
  }),
};
