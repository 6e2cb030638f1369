/**
 * Causal attention over a cache, a block of 32 keys at a time: the running softmax of Milakov and Gimelshein ("Online
 * normalizer calculation for softmax", 2018), as in FlashAttention. A workgroup computes one query, or several that load
 * keys and values once: heads of a token that read the same heads of keys (decode), and such heads of several tokens of
 * one sequence (prefill). For scores, lane j takes key j of the block; for sums, lane d takes dimension d of the values.
 * `spec/kernels.md` explains it line by line.
 */

import type { Size } from "../../spec/size.ts";
import type { Expr, Grid, Kernel, KernelText } from "./kernel.ts";
import { bindings, foldGrid, GROUP_YZ, kernelOf, wgsl } from "./kernel.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";
import { LOWEST, range } from "./pieces/numbers.ts";

/** Keys in a block; also the invocations of a workgroup. */
const ATTENTION_BLOCK = 32;

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
  /** Queries of a workgroup, at most. Default: 1. */
  readonly queries?: number;
}

/** Queries of a workgroup: so many heads, which read the same keys, of so many tokens. */
interface Tile {
  readonly heads: number;
  readonly tokens: number;
}

/** What the queries of a workgroup depend on. */
type Shape = Pick<
  AttentionOptions,
  "heads" | "kvHeads" | "dim" | "valueDim" | "queries"
>;

/** Elements of results that a lane sums at once, of all queries of a workgroup. */
const MOST_SUMS = 32;

/** Heads first: those of one token always read the same keys. */
function tileOf(o: Shape): Tile {
  const group = o.heads / o.kvHeads;
  const queries = Math.max(
    1,
    Math.min(o.queries ?? 1, Math.floor(MOST_SUMS / partsOf(o))),
  );
  const shared = range(Math.min(group, queries)).map((i) => i + 1)
    .filter((n) => group % n === 0).at(-1)!;
  return { heads: shared, tokens: Math.floor(queries / shared) };
}

/** Elements of a value that a lane sums. */
function partsOf({ dim, valueDim = dim }: Shape): number {
  return Math.ceil(valueDim / ATTENTION_BLOCK);
}

/** The grid of `attention`: workgroups for the heads, and for each token or so many. */
export function attentionGrid(o: Shape, tokens: Size): Grid {
  const tile = tileOf(o);
  return [
    o.heads / tile.heads,
    ...foldGrid(
      tile.tokens === 1 ? tokens : { ceilDiv: [tokens, tile.tokens] },
    ),
  ];
}

/** Describe attention. A head's result depends on nothing but its query and the keys up to its position. */
export function attention(o: AttentionOptions): Kernel {
  const tile = tileOf(o);
  const room = tile.heads * tile.tokens * ATTENTION_BLOCK;
  return kernelOf({
    name: o.name,
    workgroupSize: ATTENTION_BLOCK,
    bindings: bindings({
      ...{ q: "f32", keys: "f32", ...o.shared ? {} : { values: "f32" } },
      ...{ sequence: "i32", position: "i32" },
      ...o.sinks ? { sinks: "f32" } : {},
    }, { y: "f32" }),
    body: wgsl`
      var<workgroup> scores: array<f32, ${room}>;
      var<workgroup> weights: array<f32, ${room}>;

      let first_token = ${GROUP_YZ} * ${tile.tokens};
      if (first_token < ${o.tokens}) {
        ${
      tile.tokens === 1 ? attend(o, "first_token", tile) : together(o, tile)
    }
      }`,
  });
}

/** As many tokens of one sequence together; others, one after the other. */
function together(o: AttentionOptions, tile: Tile): KernelText {
  const equal = range(tile.tokens - 1).map((i) =>
    wgsl`sequence[min(first_token + ${
      i + 1
    }, ${o.tokens} - 1)] == sequence[first_token]`
  ).reduce((all, test) => wgsl`${all} && ${test}`);
  return wgsl`
    if (first_token + ${tile.tokens} <= ${o.tokens} && ${equal}) {
      ${attend(o, "first_token", tile)}
    } else {
      for (var token = first_token; token < min(first_token + ${tile.tokens}, ${o.tokens}); token++) {
        ${attend(o, "token", { ...tile, tokens: 1 })}
      }
    }`;
}

/** A token of a workgroup. */
interface Token {
  /** Its index. */
  readonly index: KernelText;
  /** What the names of its variables end in: nothing where there is one token, else its number. */
  readonly t: string;
}

/** A head of a token. */
interface Query {
  readonly token: Token;
  /** Its number among the heads of the workgroup. */
  readonly head: number;
  /** What the names of its variables end in: nothing where there is one query, else its number. */
  readonly q: string;
  /** Where its scores and weights begin in workgroup memory. */
  readonly at: number;
}

/** Queries of one workgroup, and what their text has in common. */
interface Queries {
  readonly o: AttentionOptions;
  /** Heads of a workgroup. */
  readonly heads: number;
  readonly tokens: readonly Token[];
  readonly queries: readonly Query[];
  /** The keys that a token sees do not begin with the first one. */
  readonly limited: boolean;
  /** Parts of a value of 32 elements each: lane d sums element 32c + d in `sum<c>`. */
  readonly parts: readonly number[];
}

/** The heads of tokens of one sequence, from `token` on. */
function attend(
  o: AttentionOptions,
  token: string,
  { heads, tokens: count }: Tile,
): KernelText {
  const tokens = range(count).map((i): Token => ({
    index: i === 0 ? wgsl`${token}` : wgsl`(${token} + ${i})`,
    t: count === 1 ? "" : `_${i}`,
  }));
  const single = count * heads === 1;
  const of: Queries = {
    ...{ o, heads, tokens },
    queries: tokens.flatMap((token, i) =>
      range(heads).map((head) => {
        const n = i * heads + head;
        return {
          ...{ token, head, q: single ? "" : `_${n}` },
          at: n * ATTENTION_BLOCK,
        };
      })
    ),
    limited: o.window !== undefined || o.chunk !== undefined,
    parts: range(partsOf(o)),
  };
  const first = of.limited
    ? wgsl`${smallest(of, "first")} / ${ATTENTION_BLOCK} * ${ATTENTION_BLOCK}`
    : wgsl`0u`;
  return wgsl`
    // The cached vector of position 0.
    let cache = u32(sequence[${token}]) * ${
    o.context * o.kvHeads
  } + group.x / ${o.heads / o.kvHeads / heads};
    ${begin(of)}
    for (var start = ${first}; start < ${
    largest(of, "end")
  }; start += ${ATTENTION_BLOCK}) {
      ${scores(of)}
      workgroupBarrier();
      ${weights(of)}
      workgroupBarrier();
      ${blockSums(of)}
      ${mergeBlock(of)}
    }
    ${results(of)}`;
}

/** Of each token, the keys that it sees; of each query, where it begins, and its running maximum and sums. */
function begin(
  { o, heads, tokens, queries, limited, parts }: Queries,
): KernelText {
  const headOf = (head: number) =>
    heads === 1 ? wgsl`group.x` : wgsl`group.x * ${heads} + ${head}`;
  const top = (head: number) =>
    o.sinks ? wgsl`sinks[${headOf(head)}]` : wgsl`f32(${LOWEST})`;
  return wgsl`${
    tokens.map(({ t, index }) =>
      wgsl`
      let end${t} = u32(position[${index}]) + 1;
      ${limited && wgsl`let first${t} = ${firstPosition(o, t)};`}`
    )
  }${
    queries.map(({ q, token: { index }, head }) =>
      wgsl`
      let row${q} = ${index} * ${o.heads} + ${headOf(head)};
      let q_at${q} = row${q} * ${o.dim};
      var top${q} = ${top(head)};
      var sum${q} = ${o.sinks ? wgsl`1.0` : wgsl`0.0`};
      ${parts.map((c) => wgsl`var sum${c}${q} = 0.0;`)}`
    )
  }`;
}

/** The first position that a token sees whose last one is `end` - 1. */
function firstPosition(
  { window, chunk }: AttentionOptions,
  t: string,
): KernelText {
  const ofWindow = wgsl`max(end${t}, ${window}) - ${window}`;
  const ofChunk = wgsl`(end${t} - 1) / ${chunk} * ${chunk}`;
  if (chunk === undefined) return ofWindow;
  return window === undefined ? ofChunk : wgsl`max(${ofWindow}, ${ofChunk})`;
}

/** Lane j scores key j of the block: q · k * scale. */
function scores(of: Queries): KernelText {
  const { o, queries } = of;
  const dots = queries.map(({ q }) => `dot${q}`);
  const products = queries.map(({ q }) =>
    wgsl`dot${q}_block = fma(q[q_at${q} + d], key_d, dot${q}_block);`
  );
  const dot = blockedSum(
    dots,
    { length: o.dim, over: "d" },
    wgsl`
    let key_d = keys[key_at + d];
    ${products}`,
  );
  const scaled = queries.map(({ q, at }) =>
    wgsl`
      let score${q} = dot${q} * ${o.scale};
      scores[lane + ${at}] = score${q};`
  );
  return wgsl`
    // Lanes beyond the last key score that key again, and nobody looks at it.
    let key = min(start + lane, ${largest(of, "end")} - 1);
    let key_at = (cache + key * ${o.kvHeads}) * ${o.dim};
    ${dot}
    ${scaled}`;
}

/** Lane j weights key j: exp(score - the largest score of the block). A token sees keys low to high - 1 of the block. */
function weights({ tokens, queries, limited }: Queries): KernelText {
  const single = tokens.length === 1;
  const seen = tokens.map(({ t }) => {
    const first = limited ? wgsl`max(start, first${t}) - start` : wgsl`0u`;
    // A block that one of several tokens does not see has no keys for it: low is not below high.
    const low = single || !limited
      ? first
      : wgsl`min(${first}, ${ATTENTION_BLOCK})`;
    const end = single ? wgsl`end` : wgsl`max(end${t}, start)`;
    return wgsl`
      let low${t} = ${low};
      let high${t} = min(${end} - start, ${ATTENTION_BLOCK});`;
  });
  return wgsl`${seen}${
    queries.map(({ q, at, token: { t } }) => {
      const some = single
        ? wgsl`low`
        : wgsl`min(low${t}, ${ATTENTION_BLOCK - 1})`;
      return wgsl`
      var block_top${q} = scores[${some} + ${at}];
      for (var j = low${t} + 1; j < high${t}; j++) {
        block_top${q} = max(block_top${q}, scores[j + ${at}]);
      }
      weights[lane + ${at}] = exp(score${q} - block_top${q});`;
    })
  }`;
}

/** Lane d sums dimension d of the block's values, times their weights; and every lane the weights. */
function blockSums(of: Queries): KernelText {
  const { o, tokens, queries, parts } = of;
  const width = o.valueDim ?? o.dim;
  const [values, length] = o.shared ? ["keys", o.dim] : ["values", width];
  const dimension = (c: number) => {
    const d = wgsl`lane + ${c * ATTENTION_BLOCK}`;
    return width % ATTENTION_BLOCK === 0 ? d : wgsl`min(${d}, ${width - 1})`;
  };
  const declared = queries.map(({ q }) =>
    wgsl`
      var block_sum${q} = 0.0;
      ${parts.map((c) => wgsl`var block${c}${q} = 0.0;`)}`
  );
  const loaded = parts.map((c) =>
    wgsl`let value${c} = ${values}[value_at + ${dimension(c)}];`
  );
  const added = queries.map(({ q, at, token: { t } }) => {
    // Not a weight of 0 where it is not seen: 0 times infinity is no 0.
    const put = (sum: KernelText, value: KernelText) =>
      tokens.length === 1
        ? value
        : wgsl`select(${sum}, ${value}, low${t} <= j && j < high${t})`;
    const [sum, more] = [wgsl`block_sum${q}`, wgsl`block_sum${q} + weight${q}`];
    const part = (c: number) => {
      const block = wgsl`block${c}${q}`;
      const next = wgsl`fma(weight${q}, value${c}, ${block})`;
      return wgsl`block${c}${q} = ${put(block, next)};`;
    };
    return wgsl`
      let weight${q} = weights[j + ${at}];
      block_sum${q} = ${put(sum, more)};
      ${parts.map(part)}`;
  });
  return wgsl`
    ${declared}
    for (var j = ${smallest(of, "low")}; j < ${largest(of, "high")}; j++) {
      let value_at = (cache + (start + j) * ${o.kvHeads}) * ${length};
      ${loaded}
      ${added}
    }`;
}

/**
 * The running softmax takes a block in: what was summed before is scaled to the new maximum. Sums start at 0 with the
 * lowest finite maximum, so that the first block's scale is exactly 1 and the old one's 0; or as if a sink's block,
 * exp(sink - sink) and no value, had come first.
 */
function mergeBlock({ tokens, queries, parts }: Queries): KernelText {
  const merged = queries.map(({ q, token: { t } }) => {
    const text = wgsl`
      let new_top${q} = max(top${q}, block_top${q});
      let old_scale${q} = exp(top${q} - new_top${q});
      let block_scale${q} = exp(block_top${q} - new_top${q});
      sum${q} = fma(block_sum${q}, block_scale${q}, sum${q} * old_scale${q});
      ${
      parts.map((c) =>
        wgsl`sum${c}${q} = fma(block${c}${q}, block_scale${q}, sum${c}${q} * old_scale${q});`
      )
    }
      top${q} = new_top${q};`;
    return tokens.length === 1
      ? text
      : wgsl`if (low${t} < high${t}) { ${text} }`;
  });
  return wgsl`${merged}`;
}

/** Lane d writes dimension d of every query. */
function results({ o, queries, parts }: Queries): KernelText {
  const width = o.valueDim ?? o.dim;
  return wgsl`${
    queries.map(({ q }) =>
      parts.map((c) => {
        const d = wgsl`lane + ${c * ATTENTION_BLOCK}`;
        const result = wgsl`
          y[row${q} * ${width} + ${d}] = sum${c}${q} / sum${q};`;
        return width % ATTENTION_BLOCK === 0
          ? result
          : wgsl`if (${d} < ${width}) { ${result} }`;
      })
    ).flat()
  }`;
}

/** The smallest of a variable of all tokens. */
function smallest({ tokens }: Queries, name: string): KernelText {
  return tokens.map(({ t }) => wgsl`${name + t}`)
    .reduce((a, b) => wgsl`min(${a}, ${b})`);
}

/** The largest of a variable of all tokens. */
function largest({ tokens }: Queries, name: string): KernelText {
  return tokens.map(({ t }) => wgsl`${name + t}`)
    .reduce((a, b) => wgsl`max(${a}, ${b})`);
}
