/** Schema of documents: their form, and the maximum of every number that costs compile time or memory. */

import { ACTIVATIONS } from "../../spec/activations.ts";
import {
  closed,
  oneOf,
  record,
  type Schema,
  union,
  yes,
} from "../../spec/document/schema.ts";
import { definitions } from "../../spec/document/plan_schema.ts";
import { definedRows } from "../graph/primitives/mod.ts";
import { axis, flag, number } from "../graph/primitives/fields.ts";
import { BYTES_ARITHMETIC } from "../tuning/mod.ts";
import { STORED_BYTES } from "../../spec/dtype.ts";
import { MAX_AXIS, MAX_MICRO_BATCHES, MAX_RANKS } from "../../spec/limits.ts";
import { PACKED_DTYPES } from "../../spec/packed.ts";
import { STRATEGY_ENTRIES } from "../../spec/strategies.ts";
import { GIVEN, type ModelPrimitive } from "./document.ts";

/** Maximum number of nodes of a document. The largest published models have a tenth. */
export const MAX_NODES = 1 << 16;

/** Maximum number of choices of a token, and length of short lists. */
const FEW = 64;

/** Maximum rows, columns and lanes of a tile. */
const MAX_TILE = 64;

const text: Schema = { type: "string", maxLength: 1 << 10 };
const block: Schema = { type: "string", pattern: "^[A-Za-z0-9_.-]{1,200}$" };
const axes: Schema = {
  type: "array",
  items: axis,
  maxItems: FEW,
  uniqueItems: true,
};
const expr: Schema = { $ref: "#/definitions/Expr" };
const scalars: Schema = {
  type: "array",
  items: { enum: ["f32", "i32", "u32", "bool"] },
  maxItems: FEW,
};
const dtype: Schema = { enum: ["f32", "f16", "i32"] };
const stored: Schema = {
  enum: [
    ...Object.keys(STORED_BYTES).filter((dtype) => dtype !== "u8"),
    ...PACKED_DTYPES,
  ],
};

function list(items: Schema, max: number): Schema {
  return { type: "array", items, maxItems: max };
}

function upTo(maximum: number, minimum = 0): Schema {
  return { type: "integer", minimum, maximum };
}

const length = upTo(MAX_AXIS);
const few = upTo(FEW, 1);

const fn = closed({
  parameters: scalars,
  lets: list(closed({ name: text, value: expr }), 1 << 10),
  result: expr,
});

const capacity = closed({
  slots: {
    anyOf: [
      length,
      oneOf("largest", "floor", "ceil", "ceilF32", "floorOfCeil"),
    ],
  },
  drop: oneOf("position", "score", "random"),
  order: oneOf("choice", "token"),
}, {
  factor: number,
  per: oneOf("choice", "token"),
  minimum: length,
  alignment: length,
  prioritised: flag,
});

const rule = closed({
  preset: text,
  topK: few,
  score: oneOf("softmax", "chosenSoftmax", "sigmoid", "sqrtSoftplus", "none"),
  normalize: oneOf("none", "chosen", "kept"),
}, {
  choose: oneOf("given", "balanced"),
  expertGroups: closed({ count: few, keep: few, best: few }),
  noisy: oneOf("all", "second"),
  epsilon: number,
  minSum: number,
  scale: number,
  weighs: oneOf("input", "output"),
  capacity,
});

const positions = { start: length, step: upTo(MAX_AXIS, 1) };
const renamed = { axis, to: axis };
const routing = { rule, expert: axis, slot: axis, choice: axis, tokens: axes };

/** Parameters by primitive. */
const PARAMS: { readonly [P in ModelPrimitive]: Schema } = {
  input: closed({ name: text }),
  param: closed({ name: text }, { stack: axis }),
  state: closed({ name: text }),
  map: closed({ op: text, fn }),
  // Only placement sets the number of segments.
  dot: closed({ over: axes }),
  reduce: closed({ kind: oneOf("sum", "max", "mean"), over: axis }),
  reduceSum: closed({ over: axes }),
  ...definedRows("params"),
  rope: closed({
    over: axis,
    inverseFrequencies: list(number, 1 << 12),
    scale: number,
    interleaved: flag,
    positions: length,
  }),
  embedding: closed({ over: axis }),
  // Only gradients have partial sums on a rank.
  scatterAdd: closed({ over: axis, replicated: yes }),
  rename: closed({ from: axis, to: axis }),
  split: closed({ axis, into: axes }),
  merge: closed({ axes, to: axis }),
  slice: closed({ ...renamed, ...positions }),
  dilate: closed({ ...renamed, ...positions }),
  // Both operands may have one axis.
  concat: closed({
    axes: { type: "array", items: axis, maxItems: FEW },
    to: axis,
  }),
  transpose: closed({}),
  cast: closed({}),
  topK: closed({ over: axis, k: few, axis }),
  route: closed({
    ...routing,
    operands: {
      ...list(
        oneOf("group", "noise", "bias", "mask", "random", "choices", "weights"),
        FEW,
      ),
      uniqueItems: true,
    },
  }, { leadingGroup: axis }),
  choices: closed({ ...routing, slotted: flag }),
  tupleElement: closed({
    field: oneOf(
      "values",
      "indices",
      "index",
      "weight",
      "slot",
      "chosen",
      "first",
      "kept",
      "settled",
    ),
  }),
  dispatch: closed({}, { weighted: flag }),
  combine: closed({}, { weighted: flag }),
  optimizationBarrier: closed({
    block: upTo(MAX_NODES),
    end: oneOf("in", "out"),
  }),
  cacheWrite: closed({}, { sparse: yes }),
  attention: closed({
    scale: number,
    token: axis,
    head: axis,
    dim: axis,
    valueDim: axis,
    context: axis,
    sinks: flag,
    shared: flag,
  }, {
    kvHead: axis,
    selected: axis,
    entries: axis,
    window: upTo(2 ** 31, 1),
    chunk: upTo(2 ** 31, 1),
  }),
};

const span = closed({ file: text, line: length, column: length });

function nodeOf(primitive: ModelPrimitive): Schema {
  const given = closed({ axes, dtype });
  const declared = GIVEN.has(primitive);
  return closed({
    primitive: { const: primitive },
    inputs: list(upTo(MAX_NODES, 1), 1 << 10),
    params: PARAMS[primitive],
    ...declared ? { given } : {},
  }, { span, block });
}

/** A list of nodes, with repeats expanded. */
export const nodesSchema: Schema = {
  ...list(
    union(
      Object.fromEntries(
        (Object.keys(PARAMS) as ModelPrimitive[]).map((p) => [p, nodeOf(p)]),
      ),
      "primitive",
    ),
    MAX_NODES,
  ),
  definitions,
};

const tile = closed({
  rows: upTo(MAX_TILE, 1),
  columns: upTo(MAX_TILE, 1),
  lanes: upTo(4 * MAX_TILE, 1),
}, {
  split: upTo(4 * MAX_TILE, 1),
  left: oneOf("registers", "workgroup"),
  right: oneOf("scalar", "vector", "workgroup"),
});

const meshAxes: Schema = { anyOf: [text, list(text, FEW)] };

function strategySchema(
  option: typeof STRATEGY_ENTRIES[number][1],
): Schema {
  if (option.kind === "flag") return flag;
  if (option.kind === "text") {
    return { type: "string", pattern: option.pattern };
  }
  return option.kind === "count" ? upTo(option.max, 1) : oneOf(...option.words);
}

const options = closed({}, {
  mesh: { ...record(upTo(MAX_RANKS, 1)), maxProperties: FEW },
  place: record({
    anyOf: [
      text,
      list(text, FEW),
      closed({ over: meshAxes }, {
        table: list(list(length, 1 << 16), 1 << 12),
      }),
    ],
  }),
  weights: record(stored),
  limits: record(upTo(Number.MAX_SAFE_INTEGER)),
  overLimits: flag,
  check: flag,
  countDropped: flag,
  ...Object.fromEntries(
    STRATEGY_ENTRIES.map(([name, option]) => [name, strategySchema(option)]),
  ),
  kvCacheDtype: oneOf("f32", "f16", "bf16"),
  activations: oneOf(...ACTIVATIONS),
  pages: closed(
    { size: upTo(MAX_AXIS, 1), count: upTo(MAX_AXIS, 1) },
    { snapshots: upTo(MAX_AXIS) },
  ),
  zero: oneOf(0, 1, 3),
  tuning: closed({}, {
    matmul: tile,
    pair: tile,
    matmuls: record(tile),
    attention: upTo(FEW, 1),
    splitKeys: upTo(FEW),
    recurrence: upTo(4),
    wideRows: flag,
    asFiled: list(stored, FEW),
    bytes: oneOf(...BYTES_ARITHMETIC),
  }),
});

const betas: Schema = {
  type: "array",
  items: [number, number],
  minItems: 2,
  additionalItems: false,
};

const training = closed({
  loss: text,
  optimizer: {
    anyOf: [
      closed({ kind: { const: "adamW" } }, {
        betas,
        epsilon: number,
        weightDecay: number,
      }),
      closed({ kind: { const: "sgd" } }, {
        momentum: number,
        weightDecay: number,
      }),
    ],
  },
}, {
  clipNorm: number,
  accumulate: flag,
  microBatches: upTo(MAX_MICRO_BATCHES, 1),
  recompute: flag,
  biasUpdate: number,
  dtype: oneOf("f32", "f16", "bf16"),
  trained: oneOf("all", "adapters"),
  validate: list(text, 1 << 10),
});

/** A document. Nodes have a separate schema. */
export const documentSchema: Schema = closed({
  axes: {
    ...record(closed({ size: upTo(MAX_AXIS, 1), dynamic: flag })),
    maxProperties: 1 << 12,
  },
  nodes: { type: "array" },
  returns: list(closed({ name: text, node: upTo(MAX_NODES) }), MAX_NODES),
  options,
}, { training });
