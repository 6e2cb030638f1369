/**
 * The only token of a step in attention by blocks of keys: each workgroup computes its queries, and those with the
 * block of the token also its key, because another launch costs more. Sums are those of stored queries and keys.
 */

import { KEY_BLOCK } from "../../tuning/queries.ts";
import type { Queries } from "./block.ts";
import type {
  Binding,
  Expr,
  Hole,
  KernelText,
  Statements,
  Stmt,
} from "../kernel.ts";
import { local, wgsl } from "../kernel.ts";
import { fma, let_, set } from "../../../spec/kernel/build.ts";
import { exactJson } from "../../../spec/kernel/exact_json.ts";
import { replaceInStatement } from "../../../spec/kernel/replace.ts";
import { someNode } from "../../../spec/kernel/walk.ts";
import { SUM_BLOCK } from "../pieces/blocked_sum.ts";
import { range } from "../../../spec/range.ts";

/** A vector of a head of the token. */
export interface NewVector {
  /** Declares `new_square_<n>`, the 32 elements from `new_first` of head `new_head`. Only with a norm. */
  readonly block: Statements;
  /** Declares `new_element`, element `new_d` of head `new_head`; with a norm, its scale is `new_scale`. */
  readonly element: readonly Stmt[];
}

/** The vectors of the token. */
export interface NewToken {
  /** Bindings of all statements, and of the caches. */
  readonly bindings: readonly Binding[];
  /** Of the RMS norms of queries and keys. Default: they have none. */
  readonly epsilon?: number;
  readonly query: NewVector;
  readonly key: NewVector;
  /** Stores `new_element` of the key in the cache. */
  readonly store: Statements;
}

/** Names of the elements of a block in `NewVector`. */
export const NEW_SQUARES = range(SUM_BLOCK).map((n) => `new_square_${n}`);

/**
 * Declares `new_query` f32 [head of the workgroup, dim], `new_at`, the number of the token in the block, `is_new`,
 * whether it is in it, and if so, `new_key` and the blocks of its scores, `new_dots` f32 [head of the workgroup,
 * block].
 */
export function newToken(
  of: Queries,
  { epsilon, query, key, store }: NewToken,
): KernelText {
  const { o, heads, lanes } = of;
  const { dim } = o;
  const blocks = dim / SUM_BLOCK;
  const shared = o.heads / o.kvHeads / heads;
  const firstHead = wgsl`group.x * ${heads}`;
  const keyHead = wgsl`group.x / ${shared}`;
  const each = (count: Hole, body: KernelText) =>
    wgsl`for (var cell = lane; cell < ${count}; cell += ${lanes}) { ${body} }`;
  const squares = (
    { block }: NewVector,
    { head, from }: { readonly head: KernelText; readonly from: number },
  ) =>
    wgsl`
      let new_head = ${head} + cell / ${blocks};
      let new_first = cell % ${blocks} * ${SUM_BLOCK};
      ${block}
      var square = 0.0;
      ${
      NEW_SQUARES.map((name) => {
        const x = local(name, "f32");
        return set("square", fma(x, x, local("square", "f32")));
      })
    }
      new_squares[${from * blocks} + cell] = square;`;
  const ofQuery = squares(query, { head: firstHead, from: 0 });
  const ofKey = squares(key, { head: keyHead, from: heads });
  const allSquares = (heads + 1) * blocks <= lanes
    ? wgsl`
    if (lane < ${heads * blocks}) {
      let cell = lane;
      ${ofQuery}
    }
    // The last lanes, so that other subgroups load the key.
    if (is_new && lane >= ${lanes - blocks}) {
      let cell = lane - ${lanes - blocks};
      ${ofKey}
    }`
    : wgsl`
    ${each(heads * blocks, ofQuery)}
    ${each(wgsl`select(0u, ${blocks}, is_new)`, ofKey)}`;
  const scales = (loads: Statements) =>
    epsilon !== undefined && wgsl`
    var<workgroup> new_squares: array<f32, ${(heads + 1) * blocks}>;
    var<workgroup> new_scales: array<f32, ${heads + 1}>;
    ${allSquares}
    ${loads}
    workgroupBarrier();
    ${
      each(
        heads + 1,
        wgsl`
      @unroll (n < ${blocks}) { let of_block[n] = new_squares[cell * ${blocks} + n]; }
      var total = 0.0;
      @unroll (n < ${blocks}) { total += of_block[n]; }
      new_scales[cell] = 1.0 / sqrt(total / ${dim} + ${epsilon});`,
      )
    }
    workgroupBarrier();`;
  const storeKey = wgsl`if (group.x % ${shared} == 0) { ${store} }`;
  const cells = (heads + 1) * dim / lanes;
  const elements = epsilon !== undefined && dim % lanes === 0 &&
      cells <= MAX_EARLY
    ? earlyElements(of, { query, key, firstHead, keyHead, storeKey })
    : undefined;
  const scale = (at: KernelText) =>
    epsilon !== undefined && wgsl`let new_scale = new_scales[${at}];`;
  return wgsl`
    var<workgroup> new_query: array<f32, ${heads * dim}>;
    var<workgroup> new_key: array<f32, ${dim}>;
    var<workgroup> new_dots: array<f32, ${heads * blocks}>;
    let new_at = end[0] - 1 - start;
    let is_new = new_at < ${KEY_BLOCK};
    ${scales(elements?.loads ?? [])}
    ${
    elements?.stored ?? wgsl`
    ${
      each(
        heads * dim,
        wgsl`
      let new_head = ${firstHead} + cell / ${dim};
      let new_d = cell % ${dim};
      ${scale(wgsl`cell / ${dim}`)}
      ${query.element}
      new_query[cell] = new_element;`,
      )
    }
    ${
      each(
        wgsl`select(0u, ${dim}, is_new)`,
        wgsl`
      let new_head = ${keyHead};
      let new_d = cell;
      ${scale(wgsl`${heads}`)}
      ${key.element}
      new_key[cell] = new_element;
      ${storeKey}`,
      )
    }`
  }
    workgroupBarrier();
    ${
    each(
      wgsl`select(0u, ${heads * blocks}, is_new)`,
      wgsl`
      let q_from = cell * ${SUM_BLOCK};
      let key_from = cell % ${blocks} * ${SUM_BLOCK};
      @unroll (n < ${SUM_BLOCK}) { let q_new[n] = new_query[q_from + n]; }
      @unroll (n < ${SUM_BLOCK}) { let key_new[n] = new_key[key_from + n]; }
      var new_dot = 0.0;
      @unroll (n < ${SUM_BLOCK}) { new_dot = fma(q_new[n], key_new[n], new_dot); }
      new_dots[cell] = new_dot;`,
    )
  }`;
}

/** Maximum number of elements whose operands a lane loads before it waits for the scales of norms. */
const MAX_EARLY = 4;

/** The elements of queries and key that a lane computes: their loads, and after the norms, their values. */
function earlyElements(
  { o: { dim }, heads, lanes }: Queries,
  { query, key, firstHead, keyHead, storeKey }:
    & Pick<NewToken, "query" | "key">
    & {
      readonly firstHead: KernelText;
      readonly keyHead: KernelText;
      readonly storeKey: KernelText;
    },
): { readonly loads: Statements; readonly stored: Statements } {
  const each = dim / lanes;
  const loaded = new Map<string, Expr>();
  const elements = range((heads + 1) * each).map((n) => {
    const head = Math.floor(n / each);
    const isKey = head === heads;
    const at = wgsl`lane + ${n % each * lanes}`;
    const { element } = isKey ? key : query;
    const { loads, rest } = loadsFirst(element, { suffix: `${n}`, loaded });
    const computed = wgsl`
      let new_scale_${n} = new_scales[${head}];
      ${rest}`;
    return {
      loads: wgsl`
        let new_head_${n} = ${isKey ? keyHead : wgsl`${firstHead} + ${head}`};
        let new_d_${n} = ${at};
        ${loads}`,
      stored: isKey
        ? wgsl`
        if (is_new) {
          ${computed}
          let new_head = new_head_${n};
          let new_d = new_d_${n};
          let new_element = new_element_${n};
          new_key[new_d] = new_element;
          ${storeKey}
        }`
        : wgsl`
        ${computed}
        new_query[${head * dim} + new_d_${n}] = new_element_${n};`,
    };
  });
  return {
    loads: elements.map(({ loads }) => loads),
    stored: elements.map(({ stored }) => stored),
  };
}

/**
 * Splits statements into loads that do not depend on `new_scale`, and the rest. Names end with `suffix`. `loaded`: the
 * values of loads, by their JSON.
 */
function loadsFirst(
  body: readonly Stmt[],
  { suffix, loaded }: {
    readonly suffix: string;
    readonly loaded: Map<string, Expr>;
  },
): { readonly loads: readonly Stmt[]; readonly rest: readonly Stmt[] } {
  const variable = (name: string) => `${name}_${suffix}`;
  const [loads, rest]: Stmt[][] = [[], []];
  const late = new Set([variable("new_scale")]);
  const isLate = (e: Expr) =>
    someNode(e, (of) => of.op === "local" && late.has(of.name));
  const load = (e: Extract<Expr, { readonly op: "load" }>) => {
    if (isLate(e.index)) return undefined;
    const text = exactJson(e);
    const known = loaded.get(text);
    if (known) return known;
    const name = variable(`new_load_${loaded.size}`);
    loads!.push(let_(name, e));
    const value = local(name, e.type);
    loaded.set(text, value);
    return value;
  };
  for (const statement of body) {
    const s = replaceInStatement(statement, { variable, load });
    if (s.op === "let" && !isLate(s.value)) loads!.push(s);
    else {
      if (s.op === "let") late.add(s.name);
      rest!.push(s);
    }
  }
  return { loads: loads!, rest: rest! };
}

/** Sets `dot`, the unscaled score of a key of the block by a head of the workgroup, if it is the key of the token. */
export function newDot(
  { o }: Queries,
  { dot, head, key }: {
    readonly dot: string;
    readonly head: KernelText;
    readonly key: KernelText;
  },
): KernelText {
  const blocks = o.dim / SUM_BLOCK;
  return wgsl`
    if (${key} == new_at) {
      ${dot} = 0.0;
      @unroll (n < ${blocks}) { ${dot} += new_dots[${head} * ${blocks} + n]; }
    }`;
}
