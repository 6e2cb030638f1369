/** Causal attention of packed tokens over a cache, 32 keys at a time. */

import {
  add,
  barrier,
  call,
  convert,
  div,
  f32,
  fma,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  max,
  min,
  mul,
  set,
  shared,
  sharedStore,
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import {
  foldGrid,
  type Grid,
  groupYZ,
  kernelOf,
  reads,
  writes,
} from "./kernel.ts";
import { blockedSum } from "./sum.ts";

const LOWEST = -3.4028234663852886e38;

/** Keys in a block; also the invocations of a workgroup. */
export const ATTENTION_BLOCK = 32;

/**
 * Attention. Bindings: `q` f32 [token, head, dim], `keys` f32 [sequence, context, kvHead, dim], `values` f32 [sequence,
 * context, kvHead, valueDim], `sequence` and `position` i32 [token], `sinks` f32 [head] if there are sinks, `y` f32
 * [token, head, valueDim].
 */
export interface AttentionOptions {
  readonly name: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  /** Elements of a value; default `dim`. */
  readonly valueDim?: number;
  /** Values are the first elements of the keys; there is no binding `values`. */
  readonly shared?: boolean;
  /** Each head has the score of one more key, without a value: the first block of the sum. */
  readonly sinks?: boolean;
  /** Positions of the cache. */
  readonly context: number;
  readonly scale: number;
  /** Only the last `window` positions, the token's own included. */
  readonly window?: number;
  /** Only positions of the token's own block of so many. */
  readonly chunk?: number;
  readonly tokens: Expr;
}

/** The grid of `attention`: one workgroup for each head of each token. */
export function attentionGrid(heads: number, tokens: Size): Grid {
  return [heads, ...foldGrid(tokens)];
}

/** Describe attention. A head's result depends on nothing but its query and the keys up to its position. */
export function attention(o: AttentionOptions): Kernel {
  const u = (name: string) => local(name, "u32");
  const f = (name: string) => local(name, "f32");
  const { shared: sharing = false, sinks = false } = o;
  const width = o.valueDim ?? o.dim;
  const chunks = Array.from(
    { length: Math.ceil(width / ATTENTION_BLOCK) },
    (_, c) => c,
  );
  const valueLength = sharing ? o.dim : width;
  const limited = o.window !== undefined || o.chunk !== undefined;
  const integer = (binding: string) =>
    convert("u32", load(binding, u("token"), "i32"));
  /** The dimension that this lane sums in chunk c, and whether there is one. */
  const dimension = (c: number) => add(id("local"), u32(c * ATTENTION_BLOCK));
  const whole = width % ATTENTION_BLOCK === 0;
  const readable = (c: number) =>
    whole ? dimension(c) : min(dimension(c), u32(width - 1));
  /** Where the vector of a key position starts, of so many elements. */
  const cached = (key: Expr, length: number) =>
    mul(add(u("cache"), mul(key, u32(o.kvHeads))), u32(length));

  const score: Stmt[] = [
    // Lanes beyond the last key score that key again, and nobody looks at it.
    let_("key", min(add(u("start"), id("local")), sub(u("end"), u32(1)))),
    let_("key_at", cached(u("key"), o.dim)),
    ...blockedSum({
      length: o.dim,
      totals: ["dot"],
      index: "d",
      step: (d, [block]) => ({
        values: [
          fma(
            load("q", add(u("q_at"), d)),
            load("keys", add(u("key_at"), d)),
            block!,
          ),
        ],
      }),
    }),
    let_("score", mul(f("dot"), f32(o.scale))),
    sharedStore("scores", id("local"), f("score")),
    barrier(),
  ];
  const low = limited ? sub(max(u("start"), u("first")), u("start")) : u32(0);
  const blockSums: Stmt[] = [
    let_("low", low),
    let_("high", min(sub(u("end"), u("start")), u32(ATTENTION_BLOCK))),
    var_("block_top", shared("scores", u("low"))),
    for_("j", add(u("low"), u32(1)), u("high"), [
      set("block_top", max(f("block_top"), shared("scores", u("j")))),
    ]),
    sharedStore(
      "weights",
      id("local"),
      call("exp", sub(f("score"), f("block_top"))),
    ),
    barrier(),
    var_("block_sum", f32(0)),
    ...chunks.map((c) => var_(`block${c}`, f32(0))),
    for_("j", u("low"), u("high"), [
      let_("weight", shared("weights", u("j"))),
      let_("value_at", cached(add(u("start"), u("j")), valueLength)),
      set("block_sum", add(f("block_sum"), f("weight"))),
      ...chunks.map((c) =>
        set(
          `block${c}`,
          fma(
            f("weight"),
            load(
              sharing ? "keys" : "values",
              add(u("value_at"), readable(c)),
            ),
            f(`block${c}`),
          ),
        )
      ),
    ]),
  ];
  // Sums start at 0 with the lowest finite top, so that the first block's scale is exactly 1 and the old one's 0; or as
  // if a sink's block, exp(sink - sink) and no value, had come first.
  const merge: Stmt[] = [
    let_("new_top", max(f("top"), f("block_top"))),
    let_("old_scale", call("exp", sub(f("top"), f("new_top")))),
    let_("block_scale", call("exp", sub(f("block_top"), f("new_top")))),
    ...["sum", ...chunks.map((c) => `sum${c}`)].map((sum, i) =>
      set(
        sum,
        fma(
          f(i === 0 ? "block_sum" : `block${i - 1}`),
          f("block_scale"),
          mul(f(sum), f("old_scale")),
        ),
      )
    ),
    set("top", f("new_top")),
  ];
  const write = chunks.map((c) => {
    const result = store(
      "y",
      add(mul(u("row"), u32(width)), dimension(c)),
      div(f(`sum${c}`), f("sum")),
    );
    return whole ? result : if_(lt(dimension(c), u32(width)), [result]);
  });
  const firstBlock = limited
    ? mul(div(u("first"), u32(ATTENTION_BLOCK)), u32(ATTENTION_BLOCK))
    : u32(0);
  const starts = [
    ...o.window === undefined
      ? []
      : [sub(max(u("end"), u32(o.window)), u32(o.window))],
    ...o.chunk === undefined
      ? []
      : [mul(div(sub(u("end"), u32(1)), u32(o.chunk)), u32(o.chunk))],
  ];
  return kernelOf({
    name: o.name,
    workgroupSize: ATTENTION_BLOCK,
    bindings: [
      reads("q"),
      reads("keys"),
      ...sharing ? [] : [reads("values")],
      reads("sequence", "i32"),
      reads("position", "i32"),
      ...sinks ? [reads("sinks")] : [],
      writes("y"),
    ],
    shared: ["scores", "weights"].map((name) => ({
      name,
      type: "f32",
      length: ATTENTION_BLOCK,
    })),
    body: [
      let_("token", groupYZ()),
      if_(lt(u("token"), o.tokens), [
        let_("end", add(integer("position"), u32(1))),
        ...limited ? [let_("first", starts.reduce((a, b) => max(a, b)))] : [],
        let_("row", add(mul(u("token"), u32(o.heads)), id("group.x"))),
        let_("q_at", mul(u("row"), u32(o.dim))),
        // The cached vector of position 0.
        let_(
          "cache",
          add(
            mul(integer("sequence"), u32(o.context * o.kvHeads)),
            div(id("group.x"), u32(o.heads / o.kvHeads)),
          ),
        ),
        var_("top", sinks ? load("sinks", id("group.x")) : f32(LOWEST)),
        var_("sum", f32(sinks ? 1 : 0)),
        ...chunks.map((c) => var_(`sum${c}`, f32(0))),
        for_(
          "start",
          firstBlock,
          u("end"),
          [...score, ...blockSums, ...merge],
          u32(ATTENTION_BLOCK),
        ),
        ...write,
      ]),
    ],
  });
}
