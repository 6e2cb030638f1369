/** Kernels that only derivatives need: sums over the rows of each expert, rows summed by their index, rows brought home. */

import {
  add,
  binary,
  convert,
  div,
  f32,
  fma,
  for_,
  if_,
  let_,
  load,
  local,
  lt,
  max,
  mul,
  rem,
  set,
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { DROPPED } from "./assign.ts";
import { elementwise } from "./elementwise.ts";
import { lengthOf, reads, writes } from "./kernel.ts";
import { blockedSum } from "./sum.ts";

/**
 * Where the rows of each local expert start. Bindings: `expertOf` u32 [row], in grouped order; `rowCount` u32 [1];
 * written: `starts` u32 [experts + 1]. Its grid is `elementwiseGrid(experts + 1)`.
 */
export function rowStarts(name: string, experts: number): Kernel {
  const u = (name: string) => local(name, "u32");
  return elementwise({
    name,
    count: u32(experts + 1),
    bindings: [
      reads("expertOf", "u32"),
      reads("rowCount", "u32"),
      writes("starts", "u32"),
    ],
    body: (expert) => [
      var_("before", u32(0)),
      for_("g", u32(0), load("rowCount", u32(0), "u32"), [
        let_("own", load("expertOf", u("g"), "u32")),
        if_(lt(u("own"), expert), [set("before", add(u("before"), u32(1)))]),
      ]),
      store("starts", expert, u("before")),
    ],
  });
}

/** Sums over rows. Its grid is `elementwiseGrid(count)`. */
export interface SumRowsOptions {
  readonly name: string;
  /** How many results. */
  readonly count: Expr;
  readonly bindings: readonly Binding[];
  /** The first of the grouped rows that result i sums, and the one after the last. */
  range(i: Expr): readonly [from: Expr, to: Expr];
  /** What result i adds of a row: a value, or two to multiply. */
  terms(i: Expr, row: Expr): readonly Expr[];
  epilogue(i: Expr, sum: Expr): readonly Stmt[];
}

/** Sum rows in grouped order, in the blocks of every sum: the contraction of a grouped matmul's weight gradient. */
export function sumRows(o: SumRowsOptions): Kernel {
  return elementwise({
    ...o,
    body: (i) => {
      const [from, to] = o.range(i);
      return [
        let_("from", from),
        ...blockedSum({
          length: sub(to, local("from", "u32")),
          totals: ["sum"],
          step: (k, [block]) => {
            const [a, b] = o.terms(i, add(local("from", "u32"), k));
            return { values: [b ? fma(a!, b, block!) : add(block!, a!)] };
          },
        }),
        ...o.epilogue(i, local("sum", "f32")),
      ];
    },
  });
}

/** Rows summed by index. Its grid is `elementwiseGrid(count / scatterCells(width))`. */
export interface ScatterOptions {
  readonly name: string;
  /** How many results. */
  readonly count: Expr;
  /** Results side by side that take the same rows; 1: each its own. */
  readonly width: number;
  /** How many rows might belong to each. */
  readonly length: number | Expr;
  readonly bindings: readonly Binding[];
  /** The index of row k, and the one that result i takes. */
  index(i: Expr, k: Expr): Expr;
  wanted(i: Expr): Expr;
  value(i: Expr, k: Expr): Expr;
  epilogue(i: Expr, sum: Expr): readonly Stmt[];
}

/** How many results an invocation sums: many, so that it looks for their rows once, but some are left for others. */
export function scatterCells(width: number): number {
  return [8, 4, 2].find((cells) => width % (4 * cells) === 0) ?? 1;
}

/** Every result looks for its rows, in their order: no result is written twice. */
export function scatter(o: ScatterOptions): Kernel {
  const cells = Array.from({ length: scatterCells(o.width) }, (_, c) => c);
  // Results of one invocation lie apart, so that those of invocations side by side lie side by side.
  const apart = o.width / cells.length;
  const result = (c: number) => local(`result${c}`, "u32");
  return elementwise({
    ...o,
    count: div(o.count, u32(cells.length)),
    body: (i) => [
      let_(
        "first",
        add(mul(div(i, u32(apart)), u32(o.width)), rem(i, u32(apart))),
      ),
      ...cells.map((c) =>
        let_(`result${c}`, add(local("first", "u32"), u32(c * apart)))
      ),
      let_("wanted", o.wanted(result(0))),
      ...blockedSum({
        length: o.length,
        totals: cells.map((c) => `sum${c}`),
        step: (k, blocks) => ({
          when: binary(
            "eq",
            convert("u32", o.index(result(0), k)),
            local("wanted", "u32"),
          ),
          values: cells.map((c) => add(blocks[c]!, o.value(result(c), k))),
        }),
      }),
      ...cells.flatMap((c) => o.epilogue(result(c), local(`sum${c}`, "f32"))),
    ],
  });
}

/** Rows that came home. Bindings are f32 `returned` [row, width] in send order, u32 `sendRow` [token, k], and others. */
export interface CollectOptions {
  readonly name: string;
  readonly width: number;
  /** Tokens times k. */
  readonly choices: Expr;
  readonly bindings: readonly Binding[];
  /** Uses element i of [token, k, width]. */
  epilogue(i: Expr, value: Expr): readonly Stmt[];
}

/** A row for each choice; 0 for those that were dropped. Its grid is `elementwiseGrid(tokens * k * width)`. */
export function collect(o: CollectOptions): Kernel {
  const width = u32(o.width);
  const from = local("from", "u32");
  return elementwise({
    ...o,
    count: mul(o.choices, width),
    body: (i) => [
      let_("from", load("sendRow", div(i, width), "u32")),
      var_("value", f32(0)),
      if_(binary("ne", from, u32(DROPPED)), [
        set("value", load("returned", add(mul(from, width), rem(i, width)))),
      ]),
      ...o.epilogue(i, local("value", "f32")),
    ],
  });
}

/** Logarithms of sums of exponentials. Its grid is `elementwiseGrid(count)`. */
export interface LogSumExpOptions {
  readonly name: string;
  readonly count: Expr;
  readonly length: number | Expr;
  readonly bindings: readonly Binding[];
  load(i: Expr, k: Expr): Expr;
  epilogue(i: Expr, value: Expr): readonly Stmt[];
}

/** max + log(sum of exp(x - max)) of every row. */
export function logSumExp(o: LogSumExpOptions): Kernel {
  const top = local("top", "f32");
  return elementwise({
    ...o,
    body: (i) => [
      var_("top", f32(-Infinity)),
      for_("j", u32(0), lengthOf(o.length), [
        set("top", max(top, o.load(i, local("j", "u32")))),
      ]),
      ...blockedSum({
        length: o.length,
        totals: ["sum"],
        step: (k, [block]) => ({
          values: [
            add(block!, {
              op: "call",
              type: "f32",
              fn: "exp",
              args: [sub(o.load(i, k), top)],
            }),
          ],
        }),
      }),
      ...o.epilogue(
        i,
        add(top, {
          op: "call",
          type: "f32",
          fn: "log",
          args: [local("sum", "f32")],
        }),
      ),
    ],
  });
}
