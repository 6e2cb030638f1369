/**
 * Causal attention over a cache, a block of 32 keys at a time: the running softmax of Milakov and Gimelshein ("Online
 * normalizer calculation for softmax", 2018), as in FlashAttention. A workgroup computes a head of one token (decode), or of
 * several tokens of one sequence that load keys and values once (prefill). For scores, lane j takes key j of the block; for
 * sums, lane d takes dimension d of the values. `spec/kernels.md` explains it line by line.
 */

import { type KernelText, wgsl } from "../../spec/kernel/text.ts";
import type { Expr, Kernel } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import { bindings, foldGrid, type Grid, GROUP_YZ, kernelOf } from "./kernel.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";
import { LOWEST, range } from "./pieces/numbers.ts";

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
  return kernelOf({
    name: o.name,
    workgroupSize: ATTENTION_BLOCK,
    bindings: bindings({
      ...{ q: "f32", keys: "f32", ...o.shared ? {} : { values: "f32" } },
      ...{ sequence: "i32", position: "i32" },
      ...o.sinks ? { sinks: "f32" } : {},
    }, { y: "f32" }),
    body: wgsl`
      var<workgroup> scores: array<f32, ${together * ATTENTION_BLOCK}>;
      var<workgroup> weights: array<f32, ${together * ATTENTION_BLOCK}>;

      let first_token = ${GROUP_YZ} * ${together};
      if (first_token < ${o.tokens}) {
        ${together === 1 ? attend(o, "first_token", 1) : tile(o, together)}
      }`,
  });
}

/** Tokens of one sequence together; those of several, one after the other. */
function tile(o: AttentionOptions, together: number): KernelText {
  const { tokens } = o;
  const alike = Array.from(
    { length: together - 1 },
    (_, i) =>
      wgsl`sequence[min(first_token + ${
        i + 1
      }, ${tokens} - 1)] == sequence[first_token]`,
  )
    .reduce((all, test) => wgsl`${all} && ${test}`);
  return wgsl`
    if (${alike}) {
      ${attend(o, "first_token", together)}
    } else {
      for (var token = first_token; token < min(first_token + ${together}, ${tokens}); token++) {
        ${attend(o, "token", 1)}
      }
    }`;
}

/** One of the tokens that a workgroup computes. */
interface Token {
  /** Its index. */
  readonly index: KernelText;
  /** What the names of its variables end in: nothing where there is one token, else its number. */
  readonly t: string;
  /** Where its scores and weights begin in workgroup memory. */
  readonly at: number;
}

/** Tokens of one workgroup, and what their text has in common. */
interface Tokens {
  readonly o: AttentionOptions;
  readonly tokens: readonly Token[];
  /** The keys that a token sees do not begin with the first one. */
  readonly limited: boolean;
  /** Parts of a value of 32 elements each: lane d sums element 32c + d in `sum<c>`. */
  readonly parts: readonly number[];
}

/** `count` tokens of one sequence from `token` on; beyond the last one its work is done again, and not written. */
function attend(o: AttentionOptions, token: string, count: number): KernelText {
  const of: Tokens = {
    o,
    tokens: range(count).map((r) => ({
      index: r === 0
        ? wgsl`${token}`
        : wgsl`min(${token} + ${r}, ${o.tokens} - 1)`,
      t: count === 1 ? "" : `_${r}`,
      at: r * ATTENTION_BLOCK,
    })),
    limited: o.window !== undefined || o.chunk !== undefined,
    parts: range(Math.ceil((o.valueDim ?? o.dim) / ATTENTION_BLOCK)),
  };
  const first = of.limited
    ? wgsl`${smallest(of, "first")} / ${ATTENTION_BLOCK} * ${ATTENTION_BLOCK}`
    : wgsl`0u`;
  return wgsl`
    // The cached vector of position 0.
    let cache = u32(sequence[${token}]) * ${
    o.context * o.kvHeads
  } + group.x / ${o.heads / o.kvHeads};
    ${queries(of)}
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
    ${results(of, token)}`;
}

/** Of each token: the keys that it sees, where its query begins, and its running maximum and sums. */
function queries({ o, tokens, limited, parts }: Tokens): KernelText {
  const top = o.sinks ? wgsl`sinks[group.x]` : wgsl`f32(${LOWEST})`;
  return wgsl`${
    tokens.map(({ t, index }) =>
      wgsl`
      let end${t} = u32(position[${index}]) + 1;
      ${limited && wgsl`let first${t} = ${firstPosition(o, t)};`}
      let row${t} = ${index} * ${o.heads} + group.x;
      let q_at${t} = row${t} * ${o.dim};
      var top${t} = ${top};
      var sum${t} = ${o.sinks ? wgsl`1.0` : wgsl`0.0`};
      ${parts.map((c) => wgsl`var sum${c}${t} = 0.0;`)}`
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
function scores(of: Tokens): KernelText {
  const { o, tokens } = of;
  const dots = tokens.map(({ t }) => `dot${t}`);
  const products = tokens.map(({ t }) =>
    wgsl`dot${t}_block = fma(q[q_at${t} + d], key_d, dot${t}_block);`
  );
  const dot = blockedSum(
    dots,
    { length: o.dim, over: "d" },
    wgsl`
    let key_d = keys[key_at + d];
    ${products}`,
  );
  const scaled = tokens.map(({ t, at }) =>
    wgsl`
      let score${t} = dot${t} * ${o.scale};
      scores[lane + ${at}] = score${t};`
  );
  return wgsl`
    // Lanes beyond the last key score that key again, and nobody looks at it.
    let key = min(start + lane, ${largest(of, "end")} - 1);
    let key_at = (cache + key * ${o.kvHeads}) * ${o.dim};
    ${dot}
    ${scaled}`;
}

/** Lane j weights key j: exp(score - the largest score of the block). A token sees keys low to high - 1 of the block. */
function weights({ tokens, limited }: Tokens): KernelText {
  const single = tokens.length === 1;
  return wgsl`${
    tokens.map(({ t, at }) => {
      const first = limited ? wgsl`max(start, first${t}) - start` : wgsl`0u`;
      // A block that one of several tokens does not see has no keys for it: low is not below high.
      const low = single || !limited
        ? first
        : wgsl`min(${first}, ${ATTENTION_BLOCK})`;
      const end = single ? wgsl`end` : wgsl`max(end${t}, start)`;
      const some = single
        ? wgsl`low`
        : wgsl`min(low${t}, ${ATTENTION_BLOCK - 1})`;
      return wgsl`
      let low${t} = ${low};
      let high${t} = min(${end} - start, ${ATTENTION_BLOCK});
      var block_top${t} = scores[${some} + ${at}];
      for (var j = low${t} + 1; j < high${t}; j++) {
        block_top${t} = max(block_top${t}, scores[j + ${at}]);
      }
      weights[lane + ${at}] = exp(score${t} - block_top${t});`;
    })
  }`;
}

/** Lane d sums dimension d of the block's values, times their weights; and every lane the weights. */
function blockSums(of: Tokens): KernelText {
  const { o, tokens, parts } = of;
  const width = o.valueDim ?? o.dim;
  const [values, length] = o.shared ? ["keys", o.dim] : ["values", width];
  const dimension = (c: number) => {
    const d = wgsl`lane + ${c * ATTENTION_BLOCK}`;
    return width % ATTENTION_BLOCK === 0 ? d : wgsl`min(${d}, ${width - 1})`;
  };
  const declared = tokens.map(({ t }) =>
    wgsl`
      var block_sum${t} = 0.0;
      ${parts.map((c) => wgsl`var block${c}${t} = 0.0;`)}`
  );
  const loaded = parts.map((c) =>
    wgsl`let value${c} = ${values}[value_at + ${dimension(c)}];`
  );
  const added = tokens.map(({ t, at }) => {
    // Not a weight of 0 where it is not seen: 0 times infinity is no 0.
    const put = (sum: KernelText, value: KernelText) =>
      tokens.length === 1
        ? value
        : wgsl`select(${sum}, ${value}, low${t} <= j && j < high${t})`;
    const [sum, more] = [wgsl`block_sum${t}`, wgsl`block_sum${t} + weight${t}`];
    const part = (c: number) => {
      const block = wgsl`block${c}${t}`;
      const next = wgsl`fma(weight${t}, value${c}, ${block})`;
      return wgsl`block${c}${t} = ${put(block, next)};`;
    };
    return wgsl`
      let weight${t} = weights[j + ${at}];
      block_sum${t} = ${put(sum, more)};
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
function mergeBlock({ tokens, parts }: Tokens): KernelText {
  const merged = tokens.map(({ t }) =>
    wgsl`
      let new_top${t} = max(top${t}, block_top${t});
      let old_scale${t} = exp(top${t} - new_top${t});
      let block_scale${t} = exp(block_top${t} - new_top${t});
      sum${t} = fma(block_sum${t}, block_scale${t}, sum${t} * old_scale${t});
      ${
      parts.map((c) =>
        wgsl`sum${c}${t} = fma(block${c}${t}, block_scale${t}, sum${c}${t} * old_scale${t});`
      )
    }
      top${t} = new_top${t};`
  );
  return tokens.length === 1
    ? merged[0]!
    : wgsl`${
      tokens.map(({ t }, r) => wgsl`if (low${t} < high${t}) { ${merged[r]} }`)
    }`;
}

/** Lane d writes dimension d of every token that there is. */
function results({ o, tokens, parts }: Tokens, token: string): KernelText {
  const width = o.valueDim ?? o.dim;
  return wgsl`${
    tokens.map(({ t }, r) => {
      const written = parts.map((c) => {
        const d = wgsl`lane + ${c * ATTENTION_BLOCK}`;
        const result = wgsl`
          y[row${t} * ${width} + ${d}] = sum${c}${t} / sum${t};`;
        return width % ATTENTION_BLOCK === 0
          ? result
          : wgsl`if (${d} < ${width}) { ${result} }`;
      });
      return r === 0
        ? wgsl`${written}`
        : wgsl`if (${token} + ${r} < ${o.tokens}) { ${written} }`;
    })
  }`;
}

/** The smallest of a variable of all tokens. */
function smallest({ tokens }: Tokens, name: string): KernelText {
  return tokens.map(({ t }) => wgsl`${name + t}`)
    .reduce((a, b) => wgsl`min(${a}, ${b})`);
}

/** The largest of a variable of all tokens. */
function largest({ tokens }: Tokens, name: string): KernelText {
  return tokens.map(({ t }) => wgsl`${name + t}`)
    .reduce((a, b) => wgsl`max(${a}, ${b})`);
}
