/** The JSON Schema of a plan document, as data. `plan.schema.json` is this, written out. */

import { MAX_RANKS } from "../limits.ts";
import { SHORT_EXPRESSION } from "./short_trees.ts";

/** A JSON Schema, or a part of one. */
export type Schema = { readonly [keyword: string]: unknown };

const integer: Schema = {
  type: "integer",
  minimum: 0,
  maximum: Number.MAX_SAFE_INTEGER,
};
const positive: Schema = { ...integer, minimum: 1 };
const word: Schema = { type: "integer", minimum: 0, maximum: 0xffffffff };
const text: Schema = { type: "string" };
const number: Schema = { type: "number" };
/** Names are printed on terminals and looked up in objects: no control characters, and not `__proto__`. */
const NAME = "^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$";
const name: Schema = { type: "string", pattern: NAME };
const identifier: Schema = {
  type: "string",
  pattern: "^[A-Za-z][A-Za-z0-9_]*$",
};
/** A flag that is left out where it does not hold. */
export const yes: Schema = { const: true };

/** A list; short ones have at most `SHORT` items, so that looking for one among them is always cheap. */
function list(items: Schema, min = 0): Schema {
  return min > 0
    ? { type: "array", items, minItems: min }
    : { type: "array", items };
}

const SHORT = 64;

function short(items: Schema, min = 0): Schema {
  return { ...list(items, min), maxItems: SHORT };
}

/** One of some words or numbers. */
export function oneOf(...values: readonly (string | number)[]): Schema {
  return { enum: values };
}

/** An object with exactly these fields. */
export function closed(
  required: { readonly [name: string]: Schema },
  optional: { readonly [name: string]: Schema } = {},
): Schema {
  return {
    type: "object",
    properties: { ...required, ...optional },
    required: Object.keys(required),
    additionalProperties: false,
  };
}

/** An object from names to values of one kind. */
export function record(value: Schema): Schema {
  return {
    type: "object",
    propertyNames: { type: "string", pattern: NAME },
    additionalProperties: value,
  };
}

/** A union of closed objects distinguished by a field, `op` where none is named. */
export function union(
  variants: { readonly [op: string]: Schema },
  field = "op",
): Schema {
  return {
    type: "object",
    required: [field],
    discriminator: { propertyName: field },
    oneOf: Object.values(variants),
  };
}

function ref(definition: string): Schema {
  return { $ref: `#/definitions/${definition}` };
}

const names = short(name);
const perRank = ref("perRank");
const size = ref("size");
const sizes = {
  type: "array",
  items: size,
  minItems: 3,
  maxItems: 3,
};
const expr = ref("expr");
const block = list(ref("stmt"));
const scalar = oneOf("f32", "i32", "u32", "bool");
const element = oneOf("f32", "i32", "u32");
const stored = oneOf("f32", "f16", "bf16", "i32", "u32");

function exprOf(op: string, fields: { readonly [name: string]: Schema }) {
  return closed({ op: { const: op }, type: scalar, ...fields });
}

const exprs = {
  const: exprOf("const", { value: { type: ["number", "boolean"] } }),
  local: exprOf("local", { name: identifier }),
  id: exprOf("id", { name: oneOf("group.x", "group.y", "group.z", "local") }),
  load: exprOf("load", { binding: identifier, index: expr }),
  shared: exprOf("shared", { array: identifier, index: expr }),
  unary: exprOf("unary", { fn: text, a: expr }),
  binary: exprOf("binary", { fn: text, a: expr, b: expr }),
  call: exprOf("call", { fn: text, args: list(expr) }),
  select: exprOf("select", { condition: expr, a: expr, b: expr }),
  convert: exprOf("convert", { a: expr }),
  bitcast: exprOf("bitcast", { a: expr }),
};

function stmtOf(
  op: string,
  fields: { readonly [name: string]: Schema },
  optional: { readonly [name: string]: Schema } = {},
) {
  return closed({ op: { const: op }, ...fields }, optional);
}

const stmts = {
  let: stmtOf("let", { name: identifier, value: expr }),
  var: stmtOf("var", { name: identifier, value: expr }),
  loads: stmtOf("loads", {
    names: { ...list(identifier, 2), maxItems: 4 },
    type: element,
    binding: identifier,
    index: expr,
  }),
  set: stmtOf("set", { name: identifier, value: expr }),
  store: stmtOf("store", { binding: identifier, index: expr, value: expr }),
  sharedStore: stmtOf("sharedStore", {
    array: identifier,
    index: expr,
    value: expr,
  }),
  for: stmtOf("for", {
    name: identifier,
    from: expr,
    to: expr,
    step: expr,
    body: block,
  }),
  if: stmtOf("if", { condition: expr, then: block }, { else: block }),
  barrier: stmtOf("barrier", {}),
};

const kernel = closed({
  name: identifier,
  workgroupSize: positive,
  bindings: short(
    closed({
      name: identifier,
      type: element,
      access: oneOf("read", "write", "read_write"),
    }, { writable: yes }),
  ),
  shared: short(closed({ name: identifier, type: element, length: positive })),
  body: block,
});

const span = closed({ file: text, line: positive, column: positive });

const part = closed({
  op: oneOf("dispatch", "combine"),
  routing: integer,
  part: oneOf(
    "count",
    "permute",
    "exchange counts",
    "exchange places",
    "list rows",
    "exchange rows",
    "sum",
    "exchange",
    "wait",
    "regroup",
    "combine",
  ),
}, { lists: yes });

function stepOf(
  op: string,
  fields: { readonly [name: string]: Schema },
  optional: { readonly [name: string]: Schema } = {},
) {
  return closed({
    op: { const: op },
    ranks: {
      anyOf: [{ const: "all" }, list(integer, 1)],
    },
    ...fields,
  }, {
    ...optional,
    label: text,
    span,
    block: name,
    part,
    phase: oneOf("backward", "update"),
  });
}

const steps = {
  launch: stepOf("launch", {
    kernel: name,
    bindings: { ...record(name), maxProperties: SHORT },
    workgroups: sizes,
  }),
  copy: stepOf("copy", { from: name, to: name, bytes: perRank }),
  allGather: stepOf("allGather", {
    over: short(name, 1),
    from: name,
    to: name,
    bytes: integer,
  }, {
    rows: closed({ axis: name, counts: name }),
    blocks: closed({ groupRank: name }),
  }),
  allToAll: stepOf("allToAll", {
    over: short(name, 1),
    direction: oneOf("forward", "back"),
    from: name,
    to: name,
    rowBytes: positive,
    counts: name,
    splits: list(integer, 2),
    groupRank: name,
    receivedCounts: name,
    pairRows: size,
  }, {
    countsPerRank: positive,
    experts: list({ ...list(integer, 2), maxItems: 2 }, 1),
    handle: name,
  }),
  wait: stepOf("wait", { handle: name }),
};

const port = closed({ buffer: name, dtype: element, axes: names }, {
  below: positive,
  indexes: name,
});

const buffer = closed({
  name,
  kind: oneOf(
    "input",
    "weight",
    "state",
    "const",
    "rope",
    "counts",
    "assignment",
    "output",
    "scratch",
  ),
  dtype: stored,
  axes: short(closed({ axis: name, size: perRank }, { dynamic: yes })),
  bytes: perRank,
  allocation: integer,
  offset: integer,
}, {
  rowStride: integer,
  unreduced: names,
  writers: positive,
  written: record(oneOf("before reads", "after reads")),
  routing: oneOf("counts", "tiles", "rows"),
  data: {
    anyOf: [
      closed({ all: list(word) }),
      closed({ every: positive, lists: list(list(word), 2) }),
      closed({ groupRank: short(name) }),
    ],
  },
  rope: closed({ inverseFrequencies: list(number), scale: number }),
  assignment: closed({ axis: name, holds: oneOf("items", "rows", "counts") }, {
    of: name,
    over: list(name),
  }),
});

const axis = closed({ size: integer }, {
  dynamic: yes,
  exact: yes,
  of: name,
  experts: yes,
  over: names,
  table: { anyOf: [{ enum: ["block", "cyclic"] }, list(list(integer))] },
  assignment: {
    anyOf: [
      closed({ by: { const: "blocks" } }, { within: name }),
      closed({ by: { const: "sequence" }, input: name }),
      closed({ by: { const: "items" }, input: name, of: name }),
      closed({ by: { const: "group" }, of: name }),
    ],
  },
});

const weight = closed({
  buffer: name,
  source: name,
  stored,
  axes: names,
  shape: list(integer),
}, {
  stack: name,
});

/** What `$ref` finds: sizes, steps, and the statements and expressions of kernels. */
export const definitions: Schema = {
  perRank: {
    type: ["integer", "object"],
    minimum: 0,
    maximum: Number.MAX_SAFE_INTEGER,
    properties: {
      every: positive,
      runs: {
        type: "array",
        minItems: 2,
        items: {
          type: "array",
          items: [positive, integer],
          minItems: 2,
          additionalItems: false,
        },
      },
    },
    required: ["every", "runs"],
    additionalProperties: false,
  },
  size: {
    anyOf: [
      integer,
      closed({ count: name }, { over: short(name, 1) }),
      closed({ mul: short(size, 1) }),
      closed({ add: short(size, 1) }),
      closed({ min: short(size, 1) }),
      closed({
        ceilDiv: {
          type: "array",
          items: [size, positive],
          minItems: 2,
          additionalItems: false,
        },
      }),
    ],
  },
  expr: union(exprs),
  stmt: union(stmts),
  step: union(steps),
};

/** A list in which what repeats is written once. */
function repeating(items: Schema): Schema {
  return list({
    anyOf: [
      items,
      closed({
        repeat: { type: "string", pattern: "^[a-z_]{1,64}$" },
        from: { type: "integer" },
        to: { type: "integer" },
        body: list({ type: "object" }),
      }),
    ],
  });
}

/** Ports as a document lists them. */
const namedPort = closed(
  { name, buffer: name, dtype: element, axes: names },
  { below: positive, indexes: name },
);

/** The lists of a plan that grow with its model. */
interface Lists {
  readonly title: string;
  readonly allocations: Schema;
  readonly buffers: Schema;
  readonly weights: Schema;
  readonly ports: Schema;
  readonly steps: Schema;
  /** Expressions of kernel trees. */
  readonly exprs: Schema;
}

function schemaOf(
  { title, allocations, buffers, weights, ports, steps, exprs }: Lists,
): Schema {
  return {
    $schema: "http://json-schema.org/draft-07/schema#",
    title,
    ...closed({
      version: { const: 2 },
      numerics: closed({
        class: { enum: ["exact", "fast"] },
        segments: positive,
        minSegment: positive,
        block: positive,
      }),
      requiredLimits: record(integer),
      requiredFeatures: list(name),
      mesh: short(
        closed({ name, size: { ...positive, maximum: MAX_RANKS } }),
      ),
      ranks: { ...positive, maximum: MAX_RANKS },
      axes: record(axis),
      counts: names,
      allocations,
      buffers,
      kernels: record(closed({ tree: kernel })),
      weights,
      programs: list(
        closed({ name, inputs: ports, outputs: ports, steps }),
        1,
      ),
      peakBytes: perRank,
      staging: closed({ local: perRank, host: perRank }),
    }, {
      // Whoever compiles knows what stands in it.
      compiledFrom: { type: "object" },
    }),
    definitions: { ...definitions, expr: exprs },
  };
}

const allocation = closed({ bytes: perRank });

/**
 * The JSON Schema of a plan document, in which what repeats is written once. Objects are closed: an unknown field is an
 * error. What stands in a repeat is held against the schema when it is expanded.
 */
export const planSchema: Schema = schemaOf({
  title: "Switchyard plan, version 2",
  allocations: repeating(allocation),
  buffers: repeating(buffer),
  weights: repeating(weight),
  ports: repeating(namedPort),
  steps: repeating(ref("step")),
  exprs: {
    anyOf: [{ type: "string", pattern: SHORT_EXPRESSION }, union(exprs)],
  },
});

/** The schema of a plan whose repeats are expanded. */
export const expandedSchema: Schema = schemaOf({
  title: "Switchyard plan, expanded",
  allocations: list(allocation),
  buffers: record(buffer),
  weights: list(weight),
  ports: record(port),
  steps: list(ref("step")),
  exprs: union(exprs),
});
