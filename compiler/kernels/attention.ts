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
 * Attention. Bindings: `q` f32 [token, head, dim], `keys` and `values` f32 [sequence, context, kvHead, dim],
 * `sequence` and `position` i32 [token], `y` f32 [token, head, dim].
 */
export interface AttentionOptions {
  readonly name: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  /** Positions of the cache. */
  readonly context: number;
  readonly scale: number;
  /** Only the last `window` positions, the token's own included. */
  readonly window?: number;
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
  const chunks = Array.from(
    { length: Math.ceil(o.dim / ATTENTION_BLOCK) },
    (_, c) => c,
  );
  const stride = o.kvHeads * o.dim;
  const integer = (binding: string) =>
    convert("u32", load(binding, u("token"), "i32"));
  /** The dimension that this lane sums in chunk c, and whether there is one. */
  const dimension = (c: number) => add(id("local"), u32(c * ATTENTION_BLOCK));
  const whole = o.dim % ATTENTION_BLOCK === 0;
  const readable = (c: number) =>
    whole ? dimension(c) : min(dimension(c), u32(o.dim - 1));

  const score: Stmt[] = [
    // Lanes beyond the last key score that key again, and nobody looks at it.
    let_("key", min(add(u("start"), id("local")), sub(u("end"), u32(1)))),
    let_("key_at", add(u("cache"), mul(u("key"), u32(stride)))),
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
  const low = o.window === undefined
    ? u32(0)
    : sub(max(u("start"), u("first")), u("start"));
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
      let_(
        "value_at",
        add(u("cache"), mul(add(u("start"), u("j")), u32(stride))),
      ),
      set("block_sum", add(f("block_sum"), f("weight"))),
      ...chunks.map((c) =>
        set(
          `block${c}`,
          fma(
            f("weight"),
            load("values", add(u("value_at"), readable(c))),
            f(`block${c}`),
          ),
        )
      ),
    ]),
  ];
  // Sums start at 0 with the lowest finite top, so that the first block's scale is exactly 1 and the old one's 0.
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
      add(u("q_at"), dimension(c)),
      div(f(`sum${c}`), f("sum")),
    );
    return whole ? result : if_(lt(dimension(c), u32(o.dim)), [result]);
  });
  const firstBlock = o.window === undefined
    ? u32(0)
    : mul(div(u("first"), u32(ATTENTION_BLOCK)), u32(ATTENTION_BLOCK));
  return kernelOf({
    name: o.name,
    workgroupSize: ATTENTION_BLOCK,
    bindings: [
      reads("q"),
      reads("keys"),
      reads("values"),
      reads("sequence", "i32"),
      reads("position", "i32"),
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
        ...o.window === undefined
          ? []
          : [let_("first", sub(max(u("end"), u32(o.window)), u32(o.window)))],
        let_(
          "q_at",
          mul(add(mul(u("token"), u32(o.heads)), id("group.x")), u32(o.dim)),
        ),
        let_(
          "cache",
          add(
            mul(integer("sequence"), u32(o.context * stride)),
            mul(div(id("group.x"), u32(o.heads / o.kvHeads)), u32(o.dim)),
          ),
        ),
        var_("top", f32(LOWEST)),
        var_("sum", f32(0)),
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
