/** Causal attention of packed tokens over a cache, 32 keys at a time, for one token or several that share what they load. */

import {
  add,
  and,
  barrier,
  binary,
  call,
  convert,
  div,
  eq,
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
  select,
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
  /** Tokens of a workgroup; those that follow each other in one sequence load keys and values once. Default: 1. */
  readonly together?: number;
}

/** The grid of `attention`: one workgroup for each head of each token, or of each so many tokens. */
export function attentionGrid(
  heads: number,
  tokens: Size,
  together = 1,
): Grid {
  return [
    heads,
    ...foldGrid(together === 1 ? tokens : { ceilDiv: [tokens, together] }),
  ];
}

/** Describe attention. A head's result depends on nothing but its query and the keys up to its position. */
export function attention(o: AttentionOptions): Kernel {
  const { together = 1 } = o;
  const at = "first_token";
  return kernelOf({
    name: o.name,
    workgroupSize: ATTENTION_BLOCK,
    bindings: [
      reads("q"),
      reads("keys"),
      ...o.shared ? [] : [reads("values")],
      reads("sequence", "i32"),
      reads("position", "i32"),
      ...o.sinks ? [reads("sinks")] : [],
      writes("y"),
    ],
    shared: ["scores", "weights"].map((name) => ({
      name,
      type: "f32",
      length: together * ATTENTION_BLOCK,
    })),
    body: [
      let_(at, mul(groupYZ(), u32(together))),
      if_(
        lt(u(at), o.tokens),
        together === 1 ? attend(o, u(at), 1) : tile(o, together),
      ),
    ],
  });
}

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}

function sequenceOf(token: Expr): Expr {
  return load("sequence", token, "i32");
}

/** Tokens of one sequence together; those of several, one after the other. */
function tile(o: AttentionOptions, together: number): Stmt[] {
  const first = u("first_token");
  const others = Array.from(
    { length: together - 1 },
    (_, i) => min(add(first, u32(i + 1)), sub(o.tokens, u32(1))),
  );
  const [one, ...rest] = others.map((token) =>
    eq(sequenceOf(token), sequenceOf(first))
  );
  return [
    if_(and(one!, ...rest), attend(o, first, together), [
      for_(
        "token",
        first,
        min(add(first, u32(together)), o.tokens),
        attend(o, u("token"), 1),
      ),
    ]),
  ];
}

/** What belongs to one of the tokens: names of its variables end in its number where there are several. */
interface Row {
  readonly name: (of: string) => string;
  /** Where its scores and weights lie in workgroup memory. */
  readonly at: (key: Expr) => Expr;
  /** Whether its query sees key j of the block; undefined: every key of the loop. */
  readonly sees: Expr | undefined;
}

/** `count` tokens of one sequence from `token` on; beyond the last one its work is done again, and not written. */
function attend(o: AttentionOptions, token: Expr, count: number): Stmt[] {
  const { shared: sharing = false, sinks = false } = o;
  const width = o.valueDim ?? o.dim;
  const chunks = Array.from(
    { length: Math.ceil(width / ATTENTION_BLOCK) },
    (_, c) => c,
  );
  const valueLength = sharing ? o.dim : width;
  const limited = o.window !== undefined || o.chunk !== undefined;
  const single = count === 1;
  const rows = Array.from({ length: count }, (_, r): Row => {
    const name = (of: string) => single ? of : `${of}_${r}`;
    return {
      name,
      at: (key) => add(key, u32(r * ATTENTION_BLOCK)),
      sees: single
        ? undefined
        : and(le(u(name("low")), u("j")), lt(u("j"), u(name("high")))),
    };
  });
  const all = (of: string) => rows.map(({ name }) => u(name(of)));
  const smallest = (of: string) => all(of).reduce((a, b) => min(a, b));
  const largest = (of: string) => all(of).reduce((a, b) => max(a, b));
  /** The dimension that this lane sums in chunk c, and whether there is one. */
  const dimension = (c: number) => add(id("local"), u32(c * ATTENTION_BLOCK));
  const whole = width % ATTENTION_BLOCK === 0;
  const readable = (c: number) =>
    whole ? dimension(c) : min(dimension(c), u32(width - 1));
  /** Where the vector of a key position starts, of so many elements. */
  const cached = (key: Expr, length: number) =>
    mul(add(u("cache"), mul(key, u32(o.kvHeads))), u32(length));

  const tokens = rows.flatMap(({ name }, r): Stmt[] => {
    const own = r === 0
      ? token
      : min(add(token, u32(r)), sub(o.tokens, u32(1)));
    const starts = [
      ...o.window === undefined
        ? []
        : [sub(max(u(name("end")), u32(o.window)), u32(o.window))],
      ...o.chunk === undefined ? [] : [
        mul(div(sub(u(name("end")), u32(1)), u32(o.chunk)), u32(o.chunk)),
      ],
    ];
    return [
      let_(
        name("end"),
        add(convert("u32", load("position", own, "i32")), u32(1)),
      ),
      ...limited
        ? [let_(name("first"), starts.reduce((a, b) => max(a, b)))]
        : [],
      let_(name("row"), add(mul(own, u32(o.heads)), id("group.x"))),
      let_(name("q_at"), mul(u(name("row")), u32(o.dim))),
      var_(name("top"), sinks ? load("sinks", id("group.x")) : f32(LOWEST)),
      var_(name("sum"), f32(sinks ? 1 : 0)),
      ...chunks.map((c) => var_(name(`sum${c}`), f32(0))),
    ];
  });
  const score: Stmt[] = [
    // Lanes beyond the last key score that key again, and nobody looks at it.
    let_("key", min(add(u("start"), id("local")), sub(largest("end"), u32(1)))),
    let_("key_at", cached(u("key"), o.dim)),
    ...blockedSum({
      length: o.dim,
      totals: rows.map(({ name }) => name("dot")),
      index: "d",
      step: (d, blocks) => ({
        lets: [let_("key_d", load("keys", add(u("key_at"), d)))],
        values: rows.map(({ name }, r) =>
          fma(load("q", add(u(name("q_at")), d)), f("key_d"), blocks[r]!)
        ),
      }),
    }),
    ...rows.flatMap(({ name, at }) => [
      let_(name("score"), mul(f(name("dot")), f32(o.scale))),
      sharedStore("scores", at(id("local")), f(name("score"))),
    ]),
    barrier(),
  ];
  // A block that a token does not see has no keys for it: low is not below high.
  const bounds = ({ name }: Row): Stmt[] => {
    const first = limited
      ? sub(max(u("start"), u(name("first"))), u("start"))
      : u32(0);
    const end = single ? u(name("end")) : max(u(name("end")), u("start"));
    return [
      let_(
        name("low"),
        single || !limited ? first : min(first, u32(ATTENTION_BLOCK)),
      ),
      let_(name("high"), min(sub(end, u("start")), u32(ATTENTION_BLOCK))),
    ];
  };
  const weights: Stmt[] = rows.flatMap((row) => {
    const { name, at } = row;
    const low = u(name("low"));
    const some = single ? low : min(low, u32(ATTENTION_BLOCK - 1));
    return [
      ...bounds(row),
      var_(name("block_top"), shared("scores", at(some))),
      for_("j", add(low, u32(1)), u(name("high")), [
        set(
          name("block_top"),
          max(f(name("block_top")), shared("scores", at(u("j")))),
        ),
      ]),
      sharedStore(
        "weights",
        at(id("local")),
        call("exp", sub(f(name("score")), f(name("block_top")))),
      ),
    ];
  });
  const sums: Stmt[] = [
    barrier(),
    ...rows.flatMap(({ name }) => [
      var_(name("block_sum"), f32(0)),
      ...chunks.map((c) => var_(name(`block${c}`), f32(0))),
    ]),
    for_("j", smallest("low"), largest("high"), [
      let_("value_at", cached(add(u("start"), u("j")), valueLength)),
      ...chunks.map((c) =>
        let_(
          `value${c}`,
          load(sharing ? "keys" : "values", add(u("value_at"), readable(c))),
        )
      ),
      ...rows.flatMap(({ name, at, sees }) => {
        const weight = f(name("weight"));
        // Not a weight of 0 where it is not seen: 0 times infinity is no 0.
        const put = (sum: string, value: Expr) =>
          set(sum, sees ? select(sees, value, f(sum)) : value);
        return [
          let_(name("weight"), shared("weights", at(u("j")))),
          put(name("block_sum"), add(f(name("block_sum")), weight)),
          ...chunks.map((c) => {
            const block = name(`block${c}`);
            return put(block, fma(weight, f(`value${c}`), f(block)));
          }),
        ];
      }),
    ]),
  ];
  // Sums start at 0 with the lowest finite top, so that the first block's scale is exactly 1 and the old one's 0; or as
  // if a sink's block, exp(sink - sink) and no value, had come first.
  const merge = rows.flatMap(({ name }): Stmt[] => {
    const [top, new_top] = [f(name("top")), f(name("new_top"))];
    const merged = [
      let_(name("new_top"), max(top, f(name("block_top")))),
      let_(name("old_scale"), call("exp", sub(top, new_top))),
      let_(
        name("block_scale"),
        call("exp", sub(f(name("block_top")), new_top)),
      ),
      ...["sum", ...chunks.map((c) => `sum${c}`)].map((sum, i) =>
        set(
          name(sum),
          fma(
            f(name(i === 0 ? "block_sum" : `block${i - 1}`)),
            f(name("block_scale")),
            mul(f(name(sum)), f(name("old_scale"))),
          ),
        )
      ),
      set(name("top"), new_top),
    ];
    return single ? merged : [if_(lt(u(name("low")), u(name("high"))), merged)];
  });
  const write = rows.flatMap(({ name }, r): Stmt[] => {
    const results = chunks.map((c) => {
      const result = store(
        "y",
        add(mul(u(name("row")), u32(width)), dimension(c)),
        div(f(name(`sum${c}`)), f(name("sum"))),
      );
      return whole ? result : if_(lt(dimension(c), u32(width)), [result]);
    });
    return r === 0 ? results : [if_(lt(add(token, u32(r)), o.tokens), results)];
  });
  const blockOf = (first: Expr) =>
    mul(div(first, u32(ATTENTION_BLOCK)), u32(ATTENTION_BLOCK));
  return [
    // The cached vector of position 0.
    let_(
      "cache",
      add(
        mul(
          convert("u32", sequenceOf(token)),
          u32(o.context * o.kvHeads),
        ),
        div(id("group.x"), u32(o.heads / o.kvHeads)),
      ),
    ),
    ...tokens,
    for_(
      "start",
      limited ? blockOf(smallest("first")) : u32(0),
      largest("end"),
      [...score, ...weights, ...sums, ...merge],
      u32(ATTENTION_BLOCK),
    ),
    ...write,
  ];
}

function le(a: Expr, b: Expr): Expr {
  return binary("le", a, b);
}
