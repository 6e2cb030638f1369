/**
 * The gradient of attention without its weight matrix: weights are recomputed from queries, keys and log-sum-exp, as in
 * FlashAttention (Dao et al., 2022). The cotangent of a query sums over its visible keys, those of keys and values over
 * the queries of this run that attend to them.
 */

import type { Expr, Hole, Kernel, KernelText } from "../kernel.ts";
import { bindings, elementwise, wgsl } from "../kernel.ts";
import { blockedSum } from "../pieces/blocked_sum.ts";
import { LOWEST } from "../pieces/numbers.ts";
import type { Seen } from "../../../spec/pages.ts";
import { firstSeenText } from "../pieces/seen_keys.ts";

/** Options of the gradient of attention. */
export interface BackwardOptions extends Seen {
  readonly name: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
  /** Values are the first elements of the keys; there is no binding `values`. */
  readonly shared: boolean;
  readonly sinks: boolean;
  readonly context: number;
  readonly scale: number;
  readonly tokens: Expr;
  /** Number of selected keys per token, `selected`, if keys are selected. */
  readonly selected?: number;
  /** The selected keys are blocks of this many positions. */
  readonly selectedBlock?: number;
  /** Each key head has its own list of selected keys. */
  readonly selectedPerHead?: boolean | undefined;
  /** Only some tokens wrote the keys, and a token may see none. */
  readonly sparse?: boolean;
  /** Number of rows of the result of `keyGrad`: if `sparse`, those of the cache. Default: the number of tokens. */
  readonly rows?: Expr;
}

/**
 * y[token, head] = log(sum of exp(score)), including a sink, as a running softmax: `top` is the running maximum, `sum`
 * the sum of exponentials relative to it. Its grid is `elementwiseGrid(tokens * heads)`.
 */
export function attentionSum(o: BackwardOptions): Kernel {
  const { heads, sinks } = o;
  const query = {
    end: wgsl`u32(position[token] + 1)`,
    sequence: wgsl`u32(sequence[token])`,
  };
  const add = wgsl`
    ${score(o)}
    let new_top = max(top, score);
    sum = fma(sum, exp(top - new_top), exp(score - new_top));
    top = new_top;`;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${heads}`,
    bindings: bindings({
      ...CACHE,
      sinks: "f32 [head]",
      sequence: "i32 [token]",
      position: "i32 [token]",
      selected: "i32 [token, selected]",
    }, { y: "f32 [token, head]" }),
    body: wgsl`
      let query = i;
      var top = ${sinks ? wgsl`sinks[query % ${heads}]` : wgsl`f32(${LOWEST})`};
      var sum = ${sinks ? wgsl`1.0` : wgsl`0.0`};
      ${eachKey(o, query, add)}
      y[i] = ${
      o.sparse
        ? wgsl`select(top + log(sum), f32(${LOWEST}), sum == 0.0)`
        : wgsl`top + log(sum)`
    };`,
  });
}

/**
 * The cotangent of queries, `y` f32 [token, head, dim]: the sum of slope * key. Its grid is `elementwiseGrid(tokens *
 * heads)`.
 */
export function queryGrad(o: BackwardOptions): Kernel {
  const { end, sequence } = indexOf(o, wgsl`u32(entryOf[token])`);
  const query = { end, sequence };
  const add = wgsl`
    ${score(o)}
    ${weight(o)}
    ${slope(o)}
    @unroll (e < ${o.dim}) { sum[e] = fma(slope, keys[key_at + e * ${o.kvHeads}], sum[e]); }`;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${o.heads}`,
    bindings: GRAD_BINDINGS,
    body: wgsl`
      let query = i;
      @unroll (e < ${o.dim}) { var sum[e] = 0.0; }
      ${eachKey(o, query, add)}
      @unroll (e < ${o.dim}) { y[i * ${o.dim} + e] = sum[e]; }`,
  });
}

/**
 * The cotangent of the keys or values that the tokens of this run wrote, `y` f32 in the layout of the cache. Other
 * entries are not written. Its grid is `elementwiseGrid(tokens * kvHeads)`.
 */
export function keyGrad(o: BackwardOptions, of: "keys" | "values"): Kernel {
  const length = of === "keys" ? o.dim : o.valueDim;
  const group = o.heads / o.kvHeads;
  const seen = indexOf(o, wgsl`seen_from`);
  // The term of a query for element e: slope * query for a key, weight * dy for a value, both if a key is also a value.
  const added = (factor: string, row: KernelText, count: number) =>
    wgsl`@unroll (e < ${count}) { sum[e] = fma(${factor}, ${row}, sum[e]); }`;
  const ofKeys = added("slope", wgsl`q[q_at + e * ${o.heads}]`, length);
  const ofValues = added(
    "weight",
    wgsl`dy[dy_at + e * ${o.heads}]`,
    o.valueDim,
  );
  return elementwise({
    name: o.name,
    count: wgsl`${o.rows ?? o.tokens} * ${o.kvHeads}`,
    bindings: GRAD_BINDINGS,
    body: wgsl`
      let written = i / ${o.kvHeads};
      let kv = i % ${o.kvHeads};
      let entry = ${o.sparse ? wgsl`written` : wgsl`u32(entryOf[written])`};
      ${
      o.selected === undefined && !o.sparse &&
      wgsl`let end = ${seenUntil(o)};`
    }
      @unroll (e < ${length}) { var sum[e] = 0.0; }
      for (var token = 0u; token < ${o.tokens}; token++) {
        let seen_from = u32(entryOf[token]);
        ${o.selected !== undefined && isSelected(o, o.selected)}
        if (${
      o.selected !== undefined
        ? wgsl`found > 0 && ${seen.sequence} == entry / ${o.context}`
        : o.sparse
        ? wgsl`${seen.sequence} == entry / ${o.context} && entry % ${o.context} < ${seen.end}`
        : wgsl`entry <= seen_from && seen_from < end`
    }) {
          for (var h = 0u; h < ${group}; h++) {
            let head = kv * ${group} + h;
            ${score(o)}
            ${weight(o)}
            ${of === "keys" && wgsl`${slope(o)} ${ofKeys}`}
            ${(of === "values" || o.shared) && ofValues}
          }
        }
      }
      @unroll (e < ${length}) { y[(entry * ${o.kvHeads} + kv) * ${length} + e] = sum[e]; }`,
  });
}

/** Heads are innermost, so that adjacent invocations read adjacent elements. */
const CACHE = {
  q: "f32 [token, dim, head]",
  keys: "f32 [sequence, context, dim, kvHead]",
} as const;

/** The sequence of a token, and the end of the keys that it sees, from its index. */
function indexOf({ context, sparse }: BackwardOptions, index: KernelText) {
  return sparse
    ? {
      end: wgsl`${index} % ${context + 1}`,
      sequence: wgsl`${index} / ${context + 1}`,
    }
    : {
      end: wgsl`${index} % ${context} + 1`,
      sequence: wgsl`${index} / ${context}`,
    };
}

/** Bindings of the gradient kernels. */
const GRAD_BINDINGS = bindings({
  ...CACHE,
  values: "f32 [sequence, context, valueDim, kvHead]",
  // The index of `attentionGrad`: sequence * context + position, unless keys are sparse.
  entryOf: "i32 [token]",
  dy: "f32 [token, valueDim, head]",
  // The log-sum-exps, then the products of cotangents and results.
  statistics: "f32 [token, head, 2]",
  selected: "i32 [token, selected]",
}, { y: "f32" });

/** `score`: the product of the query of `token` and `head` and the key of `entry` and `kv`, scaled. */
function score({ dim, heads, kvHeads, scale }: BackwardOptions): KernelText {
  const add = wgsl`
    dot_block = fma(q[q_at + d * ${heads}], keys[key_at + d * ${kvHeads}], dot_block);`;
  return wgsl`
    let q_at = token * ${dim * heads} + head;
    let key_at = entry * ${dim * kvHeads} + kv;
    ${blockedSum("dot", { length: dim, over: "d" }, add)}
    let score = dot * ${scale};`;
}

/** `weight` of the softmax, and the offset of the cotangent of the query's result. */
function weight({ heads, valueDim }: BackwardOptions): KernelText {
  return wgsl`
    let statistic = (token * ${heads} + head) * 2;
    let weight = exp(score - statistics[statistic]);
    let dy_at = token * ${valueDim * heads} + head;`;
}

/** `slope`: the derivative of the loss by the score: weight * (dy · value - dy · y) * scale. */
function slope(o: BackwardOptions): KernelText {
  const { heads, kvHeads, valueDim } = o;
  const [values, length] = o.shared
    ? ["keys", o.dim] as const
    : ["values", valueDim] as const;
  const add = wgsl`
    change_block = fma(dy[dy_at + v * ${heads}], ${values}[value_at + v * ${kvHeads}], change_block);`;
  return wgsl`
    let value_at = entry * ${length * kvHeads} + kv;
    ${blockedSum("change", { length: valueDim, over: "v" }, add)}
    let slope = weight * (change - statistics[statistic + 1]) * ${o.scale};`;
}

/** Executes `then` for the query `query` of `token` and `head`, and each visible key of `entry` and `kv`. */
function eachKey(
  o: BackwardOptions,
  query: { readonly end: Hole; readonly sequence: Hole },
  then: KernelText,
): KernelText {
  const first = firstSeenText(o, {
    position: wgsl`(query_end - 1)`,
    next: "query_end",
  });
  const entry = wgsl`let entry = query_sequence * ${o.context} + at;`;
  const all = wgsl`
    for (var at = ${first ?? wgsl`0u`}; at < query_end; at++) {
      ${entry}
      ${then}
    }`;
  const { selectedBlock: size } = o;
  const ofList = size === undefined
    ? wgsl`
        let at = min(u32(given), ${o.context - 1}u);
        ${entry}
        ${then}`
    : wgsl`
        let block_start = u32(given) * ${size};
        for (var at = block_start; at < min(block_start + ${size}, query_end); at++) {
          ${entry}
          ${then}
        }`;
  const listed = (count: number) =>
    wgsl`
    for (var j = 0u; j < ${count}; j++) {
      let given = selected[${listOf(o, count)} + j];
      if (given >= 0) {
        ${ofList}
      }
    }`;
  return wgsl`
    let token = query / ${o.heads};
    let head = query % ${o.heads};
    let kv = head / ${o.heads / o.kvHeads};
    let query_end = ${query.end};
    let query_sequence = ${query.sequence};
    ${o.selected === undefined ? all : listed(o.selected)}`;
}

/** The start of the list of `count` keys that `kv` of `token` reads. */
function listOf(
  { kvHeads, selectedPerHead }: BackwardOptions,
  count: number,
): KernelText {
  return selectedPerHead
    ? wgsl`(token * ${kvHeads} + kv) * ${count}`
    : wgsl`token * ${count}`;
}

/** `found`: whether the given keys of a token include `entry`. */
function isSelected(o: BackwardOptions, selected: number): KernelText {
  const { context, selectedBlock: size } = o;
  const position = wgsl`entry % ${context}`;
  const given = wgsl`selected[${listOf(o, selected)} + j]`;
  const same = size === undefined
    ? wgsl`${given} == i32(${position})`
    : wgsl`entry <= seen_from && ${given} == i32(${position} / ${size})`;
  return wgsl`
    var found = 0u;
    for (var j = 0u; j < ${selected}; j++) {
      if (${same}) { found = 1; }
    }`;
}

/** The index after the last one, sequence * context + position, from which `entry` is visible. */
function seenUntil({ context, window, chunk }: BackwardOptions): KernelText {
  const ofWindow = wgsl`entry + ${window}`;
  const ofChunk = wgsl`entry + (${chunk} - entry % ${context} % ${chunk})`;
  return [
    ...window === undefined ? [] : [ofWindow],
    ...chunk === undefined ? [] : [ofChunk],
  ].reduce(
    (a, b) => wgsl`min(${a}, ${b})`,
    wgsl`(entry / ${context} + 1) * ${context}`,
  );
}
