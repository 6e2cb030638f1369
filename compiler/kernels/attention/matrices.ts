/**
 * Causal attention of many tokens with 16-bit operands. A workgroup multiplies its queries by a block of keys, and the
 * weights of keys by their values, as matrices. Weights are relative to the largest score of earlier blocks until a
 * score is much larger: then the sums of its row are scaled (`spec/numerics.md`, 16-bit operands).
 */

import {
  shared,
  sharedStore,
  unpackHalves,
} from "../../../spec/kernel/build.ts";
import { isHalf } from "../../../spec/dtype.ts";
import { operand16, statement } from "../../../spec/kernel/matrices.ts";
import { loadRegisters, register } from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";
import { invariant } from "../../../spec/errors.ts";
import {
  ATTENTION_TILE,
  LEFT_ELEMENTS,
  type MatrixQueries,
  rightElements,
  SCORE_STRIDE,
  type ValueParts,
  valueParts,
} from "../../tuning/attention_matrices.ts";
import { operandStride } from "../../tuning/matrices.ts";
import {
  type AttentionOptions,
  eachTokenRun,
  operandsOf,
  sinkOf,
} from "./block.ts";
import type { Expr, Kernel, KernelText, Stmt } from "../kernel.ts";
import { bindings, expr, GROUP_YZ, kernelOf, local, wgsl } from "../kernel.ts";
import { u } from "../matmul/left.ts";
import { storedRow } from "../matrix_tile.ts";
import { type Cache, cacheOf } from "../pieces/cache.ts";
import { LOWEST } from "../pieces/numbers.ts";
import { firstSeenText } from "../pieces/seen_keys.ts";

const { queries, keys, depth } = ATTENTION_TILE;

/** Dimensions per load of a lane. */
const WIDTH = 4;

/** Words from one query or key to the next in workgroup memory. */
const STRIDE = operandStride(depth);

/** Difference from the earlier largest score above which sums are scaled: weights are at most exp(10), 22,026 in f16. */
const MAX_ABOVE_TOP = 10;

/** A kernel: its options, heads and tokens of a workgroup, and the cache of its sequence. */
interface Tiled {
  readonly o: AttentionOptions;
  readonly tile: MatrixQueries;
  readonly cache: Cache;
  readonly parts: ValueParts;
  /** Elements of a value, and the names of the sums of its parts. */
  readonly width: number;
  readonly sums: readonly string[];
  /** Keys that the queries are multiplied by at once, and the names of the products with a block of them. */
  readonly atOnce: number;
  readonly products: readonly string[];
  /** Lanes with one query, each with an equal part of the keys. */
  readonly perQuery: number;
}

/** Creates the kernel. Its grid is `matrixQueriesGrid`. */
export function attentionMatrices(
  o: AttentionOptions,
  tile: MatrixQueries,
): Kernel {
  const { valueDim: width = o.dim } = o;
  const kvHead = wgsl`group.x / ${o.heads / o.kvHeads / tile.heads}`;
  const cache = cacheOf(o, { token: "token", kvHead, scattered: true });
  const parts = valueParts(o);
  invariant(parts, "parts of values are equally long");
  const { lanes } = parts;
  const perQuery = lanes / queries;
  const sums = range(width / parts.width).map((n) => `sums${n}`);
  const products = range(tile.blocks).map((n) => `products${n}`);
  const atOnce = tile.blocks * keys;
  const of: Tiled = {
    o,
    tile,
    cache,
    parts,
    width,
    sums,
    atOnce,
    products,
    perQuery,
  };
  return kernelOf({
    name: `${o.name}_f16`,
    workgroupSize: lanes,
    bindings: [
      ...operandsOf(o),
      ...bindings({}, { y: "f32 [token, head, valueDim]" }),
    ],
    body: wgsl`
      var<workgroup> scores: array<f32, ${queries * SCORE_STRIDE}>;
      var<workgroup> left_tile: array<f32, ${LEFT_ELEMENTS}>;
      var<workgroup> right_tile: array<f32, ${
      rightElements(tile.blocks, parts)
    }>;
      var<workgroup> of_lanes: array<f32, ${lanes}>;
      var<workgroup> factors: array<f32, ${queries}>;

      let first_token = ${GROUP_YZ} * ${tile.tokens};
      let query = lane % ${queries};
      let part = lane / ${queries};
      ${eachTokenRun(o, tile, ofRun(of))}`,
  });
}

/** The tokens of one sequence: `run` of them from `token` on. */
function ofRun(of: Tiled): KernelText {
  const { o, tile, cache } = of;
  const seenFrom = (next: string) =>
    firstSeenText(o, { position: wgsl`(${next} - 1)`, next });
  const first = seenFrom("next");
  return wgsl`
    let run_end = token + run;
    ${cache.begin}
    var keys_end = 0u;
    var keys_first = ${first ? wgsl`0xffffffffu` : wgsl`0u`};
    for (var other = token; other < run_end; other++) {
      let next = u32(position[other]) + 1;
      keys_end = max(keys_end, next);
      ${first && wgsl`keys_first = min(keys_first, ${first});`}
    }
    let first_key = keys_first / ${keys} * ${keys};
    // Queries of other tokens see no keys.
    let of_token = first_token + query / ${tile.heads};
    let own_next = u32(position[min(of_token, run_end - 1)]) + 1;
    let seen_first = ${seenFrom("own_next") ?? wgsl`0u`};
    let seen_end = select(0u, own_next, token <= of_token && of_token < run_end);
    let seen_count = max(seen_end, seen_first) - seen_first;
    ${queryLoads(of)}
    let head = group.x * ${tile.heads} + query % ${tile.heads};
    ${o.sinks && wgsl`let sink = ${sinkOf(o, u("head"))};`}
    ${[
    statement({
      op: "matrices",
      names: of.sums,
      rows: queries,
      columns: of.parts.width,
    }),
  ]}
    ${weightedValues(of)}
    ${results(of)}`;
}

/**
 * Declares the largest score of block `n` of keys, `block_top`, and raises `row_top` to it if it is much larger: then
 * the sum of weights, and the row of the sums of values, are multiplied by a factor.
 */
function raisedTop(of: Tiled, n: number): KernelText {
  const { o, perQuery, sums } = of;
  const top = partsOf(of, u("query")).reduce((a, b) => expr`max(${a}, ${b})`);
  return wgsl`
    var top = f32(${LOWEST});
    for (var c = 0u; c < ${keys / perQuery}; c += ${WIDTH}) {
      let own_key = part * ${keys / perQuery} + c;
      ${scoresFrom(n, WIDTH)}
      @unroll (i < ${WIDTH}) {
        top = max(top, select(f32(${LOWEST}), score[i], after_first + i < seen_count));
      }
    }
    of_lanes[lane] = top;
    workgroupBarrier();
    let block_top = ${top} * ${o.scale};
    let is_larger = block_top > row_top + ${MAX_ABOVE_TOP};
    let factor = select(1.0, exp(row_top - block_top), is_larger);
    row_top = select(row_top, block_top, is_larger);
    sum *= factor;
    // Sums of values are 0 before the first key that the query sees.
    if (part == 0) { factors[query] = select(1.0, factor, block_start > seen_first); }
    ${[statement({ op: "scaleRows", names: sums, factors: "factors" })]}`;
}

/**
 * Declares scores of the lane's query for keys of block `n` from `own_key` on, and the position of the first key,
 * counted from the first key that the query sees.
 */
function scoresFrom(n: number, count: number): KernelText {
  return wgsl`
    let after_first = start + own_key + ${n * keys} - seen_first;
    let scores_from = query * ${SCORE_STRIDE} + own_key;
    @unroll (i < ${count}) {
      let score[i] = scores[scores_from + i];
    }`;
}

/** The numbers in `of_lanes` of all lanes with a query. */
function partsOf({ perQuery }: Tiled, query: Expr): readonly Expr[] {
  return range(perQuery).map((n) =>
    shared("of_lanes", expr`${query} + ${n * queries}`)
  );
}

/**
 * Loads of a panel of queries: lanes with adjacent dimensions of a query, queries that all lanes load at once, and
 * loads of each lane.
 */
function queriesAtOnce({ parts }: Tiled) {
  const units = depth / WIDTH;
  const each = parts.lanes / units;
  return { units, each, loads: queries / each };
}

/** Declares where each lane's loads of queries start. After the last token, the last one is loaded again. */
function queryLoads(of: Tiled): KernelText {
  const { o, tile } = of;
  const { units, each, loads } = queriesAtOnce(of);
  return wgsl`
    let unit_query = lane / ${units};
    let lane_query = ${storedRow(u("unit_query"), depth)};
    let query_to = lane_query * ${STRIDE} + lane % ${units} * ${WIDTH};
    @unroll (i < ${loads}) {
      let loaded = lane_query + i * ${each};
      let loaded_row = min(first_token + loaded / ${tile.heads}, end_token - 1) * ${o.heads} + (group.x * ${tile.heads} + loaded % ${tile.heads});
      let query_from[i] = loaded_row * ${o.dim / WIDTH} + lane % ${units};
    }`;
}

/** The products of all queries with the keys from `start` on. */
function productsOf(of: Tiled): KernelText {
  const { o, cache, parts, atOnce, products } = of;
  const { stored = "f32" } = o;
  const { each, loads } = queriesAtOnce(of);
  const query = range(loads).flatMap((i) => [
    loadRegisters(`query_value${i}`, range(WIDTH), {
      binding: "q",
      type: "f32",
      index: expr`${register("query_from", [i], "u32")} + ${u("d")} / ${WIDTH}`,
    }),
    ...range(WIDTH).map((m) =>
      sharedStore(
        "left_tile",
        expr`${u("query_to")} + ${i * each * STRIDE + m}`,
        operand16(register(`query_value${i}`, [m])),
      )
    ),
  ]);
  // Dimensions of a panel of keys per lane, and per load: loads of keys and values of one binding are equally long.
  const dims = depth * atOnce / parts.lanes;
  const most = isHalf(stored) && !o.shared ? 2 * WIDTH : WIDTH;
  const perLoad = Math.min(dims, most);
  const words = isHalf(stored) ? perLoad / 2 : perLoad;
  const keyLoads = range(dims / perLoad);
  const key = [
    ...keyLoads.map((n) =>
      loadRegisters(`key_word${n}`, range(words), {
        binding: "keys",
        type: isHalf(stored) ? "u32" : "f32",
        index: expr`${u("key_from")} + ${u("d")} / ${perLoad} + ${n}`,
      })
    ),
    ...keyLoads.flatMap((n) =>
      elementsOf(o, { base: `key_word${n}`, words }).map((value, m) =>
        sharedStore(
          "right_tile",
          expr`${u("key_to")} + ${n * perLoad + m}`,
          value,
        )
      )
    ),
  ];
  const vector = cache.vectorOf(
    wgsl`min(start + lane % ${atOnce}, keys_end - 1)`,
  );
  return wgsl`
    let key_from = (${vector}) * ${o.dim / perLoad} + lane / ${atOnce} * ${
    dims / perLoad
  };
    let key_to = lane % ${atOnce} * ${STRIDE} + lane / ${atOnce} * ${dims};
    ${[
    statement({
      op: "matrices",
      names: products,
      rows: queries,
      columns: keys,
    }),
  ]}
    for (var d = 0u; d < ${o.dim}; d += ${depth}) {
      workgroupBarrier();
      ${query}
      ${key}
      ${[
    statement({
      op: "multiply",
      left: "left_tile",
      depth,
      leftStride: STRIDE,
      rightStride: STRIDE,
      transposed: true,
      products: products.map((name, n) => ({
        name,
        right: "right_tile",
        ...n > 0 ? { from: n * keys * STRIDE } : {},
      })),
    }),
  ]}
    }`;
}

/** Stores the products with a block of keys: `scores` f32 [query, key]. */
function storedScores(name: string): Stmt {
  return statement({
    op: "storeMatrix",
    name,
    array: "scores",
    stride: SCORE_STRIDE,
  });
}

/** The elements in loaded words of a cache, as operands. */
function elementsOf(
  { stored = "f32" }: AttentionOptions,
  { base, words }: { readonly base: string; readonly words: number },
): readonly Expr[] {
  return range(words).flatMap((n) => {
    if (!isHalf(stored)) return [operand16(register(base, [n]))];
    const both = unpackHalves(stored, register(base, [n], "u32"));
    return stored === "f16" ? both : both.map(operand16);
  });
}

/** The sums of values, and of the weights of each lane, `of_lanes`. */
function weightedValues(of: Tiled): KernelText {
  const { sinks } = of.o;
  return wgsl`
    var row_top = ${sinks ? wgsl`sink` : wgsl`f32(${LOWEST})`};
    var sum = ${sinks ? wgsl`select(0.0, 1.0, part == 0)` : wgsl`0.0`};
    for (var start = first_key; start < keys_end; start += ${of.atOnce}) {
      ${productsOf(of)}
      ${of.products.map((name, n) => weightedBlock(of, name, n))}
    }
    of_lanes[lane] = sum;`;
}

/** Adds the values of block `n` of keys, times their weights. `product`: that with the keys. */
function weightedBlock(of: Tiled, product: string, n: number): KernelText {
  const { o, perQuery, parts } = of;
  const each = depth / perQuery;
  return wgsl`
    if (start + ${n * keys} < keys_end) {
      let block_start = start + ${n * keys};
      ${[storedScores(product)]}
      workgroupBarrier();
      ${raisedTop(of, n)}
      for (var c = 0u; c < ${keys}; c += ${depth}) {
        workgroupBarrier();
        let own_key = c + part * ${each};
        ${scoresFrom(n, each)}
        @unroll (i < ${each}) {
          let weight[i] = select(0.0, exp(score[i] * ${o.scale} - row_top), after_first + i < seen_count);
          sum += weight[i];
        }
        let weights_to = query * ${STRIDE} + part * ${each};
        @unroll (i < ${each}) {
          left_tile[weights_to + i] = roundF16(weight[i]);
        }
        ${
    of.sums.flatMap((name, n) => [
      ...n > 0 ? [wgsl`workgroupBarrier();`] : [],
      ...valuesOf(of, n),
      statement({
        op: "multiply",
        left: "left_tile",
        depth,
        leftStride: STRIDE,
        rightStride: operandStride(parts.width),
        products: [{ name, right: "right_tile" }],
      }),
    ])
  }
      }
    }`;
}

/** `right_tile` f16 [key, element]: part `n` of the values of the keys from `start + c`. */
function valuesOf(
  { o, cache, parts: { lanes, width: part }, width }: Tiled,
  n: number,
): readonly (Stmt | KernelText)[] {
  const { stored = "f32" } = o;
  const perKey = part / WIDTH;
  const rowUnits = (o.shared ? o.dim : width) / WIDTH;
  return range(depth * perKey / lanes).flatMap((i) => {
    const element = wgsl`(lane + ${i * lanes})`;
    const key = wgsl`block_start + c + ${element} / ${perKey}`;
    const vector = cache.vectorOf(wgsl`min(${key}, keys_end - 1)`);
    const words = isHalf(stored) ? WIDTH / 2 : WIDTH;
    const base = `value_word${n}_${i}`;
    return [
      wgsl`
      let value_to${n}[${i}] = ${element} / ${perKey} * ${
        operandStride(part)
      } + ${element} % ${perKey} * ${WIDTH};
      let value_from${n}[${i}] = (${vector}) * ${rowUnits} + ${
        n * perKey
      } + ${element} % ${perKey};`,
      loadRegisters(base, range(words), {
        binding: o.shared ? "keys" : "values",
        type: isHalf(stored) ? "u32" : "f32",
        index: register(`value_from${n}`, [i], "u32"),
      }),
      ...elementsOf(o, { base, words }).map((value, m) =>
        sharedStore(
          "right_tile",
          expr`${register(`value_to${n}`, [i], "u32")} + ${m}`,
          value,
        )
      ),
    ];
  });
}

/** Stores the sums of values, divided by those of weights. */
function results(of: Tiled): KernelText {
  const { o, tile, width, parts, sums } = of;
  const [row, token] = [u("of_query"), u("result_token")];
  const total = partsOf(of, row).reduce((a, b) => expr`${a} + ${b}`);
  const head = expr`group.x * ${tile.heads} + ${row} % ${tile.heads}`;
  const first = expr`(${token} * ${o.heads} + ${head}) * ${width} + ${
    u("column")
  }`;
  const isOfRun = expr`${u("token")} <= ${token} && ${token} < ${u("run_end")}`;
  return wgsl`${[
    statement({
      op: "results",
      names: sums,
      row: { name: "of_query", from: expr`0u`, end: expr`${queries}u` },
      column: { name: "column", from: expr`0u`, end: expr`${parts.width}u` },
      values: sums.map((_, n) => `value${n}`),
      body: [
        {
          op: "let",
          name: "result_token",
          value: expr`${u("first_token")} + ${row} / ${tile.heads}`,
        },
        {
          op: "if",
          condition: isOfRun,
          then: sums.map((_, n) => ({
            op: "store",
            binding: "y",
            index: expr`${first} + ${n * parts.width}`,
            value: expr`${local(`value${n}`, "f32")} / ${total}`,
          })),
        },
      ],
    }),
  ]}`;
}
