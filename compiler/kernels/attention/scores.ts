/**
 * Scores of a block of 32 keys in attention: lane j of a team computes those of key j for all queries of a workgroup.
 * Several teams sum different blocks of the dimension.
 */

import type { HalfDType } from "../../../spec/dtype.ts";
import { fma, loadStored, unpackHalves } from "../../../spec/kernel/build.ts";
import {
  declareEach,
  letRegister,
  loadRegisters,
  type Register,
  register,
  registers,
  setEach,
} from "../../../spec/kernel/registers.ts";
import { KEY_BLOCK } from "../../tuning/queries.ts";
import {
  offsetOf,
  ofTokens,
  pairsOf,
  type Queries,
  visibleKeys,
} from "./block.ts";
import { newDot } from "./new_token.ts";
import type { Expr, KernelText, Statements, Stmt } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { blockedSum, SUM_BLOCK } from "../pieces/blocked_sum.ts";
import { LOWEST } from "../pieces/numbers.ts";
import { range } from "../../../spec/range.ts";

/** Lane j scores key j of the block: q · k * scale. */
export function scores(of: Queries): KernelText {
  const { o, each, keys, stored, atOnce } = of;
  const pairs = pairsOf(o);
  const [even, odd] = unpackHalves(pairs ?? "f16", local("key_pair", "u32"));
  const perWord = pairs ? 2 : 1;
  const words = o.dim % KEY_BLOCK === 0 ? Math.min(atOnce, 16) : 1;
  const vectors = words > 1;
  const product = (d: KernelText, key: string) =>
    wgsl`
      @unroll (${each}) {
        dot_block[t][h] = fma(q[q_at[t][h] + ${d}], ${key}, dot_block[t][h]);
      }`;
  const terms = words * perWord;
  const products = vectors
    ? productsAtOnce(of, { pairs, words })
    : pairs
    ? wgsl`
      let key_pair = keys[key_at + d];
      let key_even = ${even};
      let key_odd = ${odd};
      ${product(wgsl`d * 2`, "key_even")}
      ${product(wgsl`(d * 2 + 1)`, "key_odd")}`
    : wgsl`
      let element = key_at + d;
      let key_d = ${loadStored(keys, stored, local("element", "u32"))};
      ${product(wgsl`d`, "key_d")}`;
  const lane = of.teams > 1 ? wgsl`key_lane` : wgsl`lane`;
  const key = of.cache.hasFullBlocks
    ? wgsl`start + ${lane}`
    : wgsl`min(start + ${lane}, ${ofTokens("max", of.end, of)} - 1)`;
  const neighbour = o.pages
    ? wgsl`of_lane ^ 1`
    : wgsl`select(of_lane - 1, 1, of_lane == 0)`;
  const vector = of.cache.vectorOf(wgsl`key`);
  return wgsl`
    ${of.teams > 1 && wgsl`let key_lane = lane % ${KEY_BLOCK};`}
    // Lanes after the last key compute unused scores.
    ${
    of.isNew
      // Another workgroup may be writing the new key, so its neighbour stands for it.
      ? wgsl`
    let of_lane = ${key};
    let key = select(of_lane, ${neighbour}, of_lane == end[0] - 1);`
      : wgsl`let key = ${key};`
  }
    let key_at = (${vector}) * ${pairs ? o.dim / 2 : o.dim};
    ${
    vectors &&
    wgsl`@unroll (${each}) { let q_vector[t][h] = ${
      of.isNew ? "h" : wgsl`row[t][h]`
    } * ${o.dim / WIDTH}; }`
  }
    ${
    of.teams > 1 ? dotsInTeams(of, { products, terms }) : wgsl`
    ${blockedSum(dotsOf(of), { length: o.dim, over: "d", terms }, products)}
    ${
      of.isNew && wgsl`
    workgroupBarrier();
    @unroll (${each}) {
      ${newDot(of, { dot: "dot[t][h]", head: wgsl`h`, key: wgsl`lane` })}
    }`
    }
    @unroll (${each}) {
      let score[t][h] = dot[t][h] * ${o.scale};
      scores[lane + ${offsetOf(of)}] = score[t][h];
    }`
  }`;
}

/** Scores of one token, from the block sums of all teams in their order. */
function dotsInTeams(
  of: Queries,
  { products, terms }: {
    readonly products: Statements;
    readonly terms: number;
  },
): KernelText {
  const { o, teams, lanes, heads, each } = of;
  const blocks = o.dim / SUM_BLOCK;
  const cells = heads * KEY_BLOCK;
  const perBlock = SUM_BLOCK / terms;
  return wgsl`
    for (var d_block = lane / ${KEY_BLOCK}; d_block < ${blocks}; d_block += ${teams}) {
      ${declareEach(dotsOf(of), "_block")}
      let d_first = d_block * ${perBlock};
      for (var d = d_first; d < d_first + ${perBlock}; d++) { ${products} }
      @unroll (${each}) {
        dot_sums[d_block * ${cells} + ${
    offsetOf(of)
  } + key_lane] = dot_block[t][h];
      }
    }
    workgroupBarrier();
    ${visibleKeys(of)}
    for (var cell = lane; cell < ${cells}; cell += ${lanes}) {
      @unroll (n < ${blocks}) { let of_block[n] = dot_sums[n * ${cells} + cell]; }
      var dot = 0.0;
      @unroll (n < ${blocks}) { dot += of_block[n]; }
      ${
    of.isNew && newDot(of, {
      dot: "dot",
      head: wgsl`cell / ${KEY_BLOCK}`,
      key: wgsl`cell % ${KEY_BLOCK}`,
    })
  }
      // Scores of other keys do not change the maximum.
      let is_visible = low[0] <= cell % ${KEY_BLOCK} && cell % ${KEY_BLOCK} < high[0];
      scores[cell] = select(${LOWEST}, dot * ${o.scale}, is_visible);
    }`;
}

/** The dot products of all queries. */
function dotsOf({ tokens, heads }: Queries): readonly Register[] {
  return registers("dot", tokens, heads);
}

/** Elements of a query that a lane loads at once. */
const WIDTH = 4;

/** The products of some words of a key, all of which are loaded before the first product. */
function productsAtOnce(
  { tokens, heads, each, keys, stored, isNew }: Queries,
  { pairs, words }: {
    readonly pairs: HalfDType | undefined;
    readonly words: number;
  },
): KernelText {
  const count = pairs ? 2 * words : words;
  const of = (t: number, h: number) => `q_value${t}_${h}`;
  const query = (n: number) =>
    range(tokens).flatMap((t) =>
      range(heads).flatMap((h): (Stmt | KernelText)[] => {
        const columns = range(WIDTH).map((m) => n + m);
        if (isNew) {
          return columns.map((c) =>
            wgsl`
            let ${
              of(t, h)
            }[${c}] = new_query[q_from[${t}][${h}] * ${WIDTH} + ${c}];`
          );
        }
        const from = register("q_from", [t, h], "u32");
        const index = expr`${from} + ${n / WIDTH}`;
        return [
          loadRegisters(of(t, h), columns, {
            binding: "q",
            type: "f32",
            index,
          }),
        ];
      })
    );
  const product = (n: number, key: Expr): (Stmt | KernelText)[] => [
    ...n % WIDTH === 0 ? query(n) : [],
    ...range(tokens).flatMap((t) =>
      range(heads).flatMap((h) =>
        setEach(
          [{ base: "dot", indices: [t, h] }],
          "_block",
          (sumOf) => fma(register(of(t, h), [n]), key, sumOf("_block")),
        )
      )
    ),
  ];
  return wgsl`
    @unroll (${each}) {
      let q_from[t][h] = q_vector[t][h] + d * ${count / WIDTH};
    }
    let key_from = key_at + d * ${words};
    ${
    range(words).map((n) => {
      const index = expr`${local("key_from", "u32")} + ${n}`;
      return pairs
        ? wgsl`let key_pair_${n} = ${keys}[${index}];`
        : wgsl`let key_${n} = ${loadStored(keys, stored, index)};`;
    })
  }
    ${
    range(words).flatMap((n): (Stmt | KernelText)[] => {
      if (!pairs) return product(n, local(`key_${n}`, "f32"));
      const both = unpackHalves(pairs, local(`key_pair_${n}`, "u32"));
      return both.flatMap((key, odd) => [
        letRegister("key_value", [2 * n + odd], key),
        ...product(2 * n + odd, register("key_value", [2 * n + odd])),
      ]);
    })
  }`;
}
