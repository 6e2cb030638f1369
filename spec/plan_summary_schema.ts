/** The JSON Schema of a plan's summary, as data. `plan_summary.schema.json` is this, written out. */

import { closed, record, type Schema } from "./schema.ts";

const count: Schema = { type: "integer", minimum: 0 };
const amount: Schema = { type: "number", minimum: 0 };
const text: Schema = { type: "string" };

function list(items: Schema): Schema {
  return { type: "array", items };
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
    }, { seconds: amount })),
    problems: list(closed({ what: text, mend: text })),
    notes: list(text),
  }, {
    target: text,
    predicted: closed({ prefill: amount, decode: amount }),
  }),
};
