/** The JSON Schema of machine files. */

import { closed, record, type Schema } from "./plan_schema.ts";

const above: Schema = { type: "number", exclusiveMinimum: 0 };
const atLeast: Schema = { type: "number", minimum: 0 };
const count: Schema = { type: "integer", minimum: 1, maximum: 1 << 20 };
const text: Schema = {
  type: "string",
  pattern: "^[^\\u0000-\\u001f\\u007f]*$",
};
const matrix: Schema = {
  type: "array",
  items: { type: "array", items: atLeast },
};
const link = closed({
  latency: atLeast,
  bandwidth: above,
  per: { enum: ["pair", "rank", "host"] },
}, {
  gather: closed({ latency: atLeast, peer: atLeast }),
  peer: atLeast,
  oversubscription: above,
  short: { type: "array", items: closed({ bytes: above, seconds: atLeast }) },
});

/** The JSON Schema of a machine file. Objects are closed: an unknown field is an error. */
export const machineSchema: Schema = {
  $schema: "http://json-schema.org/draft-07/schema#",
  title: "Switchyard machine, version 1",
  ...closed({
    version: { const: 1 },
    name: text,
    devices: record(closed({
      multiplyAdds: above,
      operations: above,
      bandwidth: above,
      launch: atLeast,
    }, {
      name: text,
      computer: { enum: ["cpu", "native", "software"] },
      limits: record(atLeast),
      memory: above,
      cache: closed({ bytes: above, bandwidth: above }),
      reading: above,
      attending: above,
      run: atLeast,
      parallel: above,
      grain: atLeast,
      join: atLeast,
      sync: atLeast,
      exchange: closed({ launch: atLeast, operations: above }),
      staging: closed({ latency: atLeast, bandwidth: above }),
    })),
    hosts: {
      type: "array",
      minItems: 1,
      items: closed({
        devices: {
          type: "array",
          minItems: 1,
          items: closed({ kind: text }, { count, ranks: count }),
        },
      }, { name: text, count, atOnce: above }),
    },
    links: closed({}, { sameHost: link, otherHost: link, otherRack: link }),
  }, {
    source: text,
    rack: count,
    measured: closed({
      communicator: text,
      latency: matrix,
      bandwidth: matrix,
    }),
  }),
};
