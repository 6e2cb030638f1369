/** Scores of a block of 32 keys in attention: lane j takes key j of the block for all queries of a workgroup. */

import type { HalfDType } from "../../spec/dtype.ts";
import { fma, loadStored, unpackHalves } from "../../spec/kernel/build.ts";
import {
  letRegister,
  loadRegisters,
  register,
  registers,
  setEach,
} from "../../spec/kernel/registers.ts";
import { KEY_BLOCK } from "../tuning/queries.ts";
import {
  offsetOf,
  ofTokens,
  pairsOf,
  type Queries,
} from "./attention_block.ts";
import type { Expr, KernelText } from "./kernel.ts";
import { expr, local, wgsl } from "./kernel.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";
import { range } from "../../spec/range.ts";

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
  const dot = blockedSum(
    registers("dot", of.tokens, of.heads),
    { length: o.dim, over: "d", terms: words * perWord },
    vectors ? productsAtOnce(of, { pairs, words }) : pairs
      ? wgsl`
      let key_pair = keys[key_at + d];
      let key_even = ${even};
      let key_odd = ${odd};
      ${product(wgsl`d * 2`, "key_even")}
      ${product(wgsl`(d * 2 + 1)`, "key_odd")}`
      : wgsl`
      let element = key_at + d;
      let key_d = ${loadStored(keys, stored, local("element", "u32"))};
      ${product(wgsl`d`, "key_d")}`,
  );
  const key = of.cache.hasFullBlocks
    ? wgsl`start + lane`
    : wgsl`min(start + lane, ${ofTokens("max", of.end, of)} - 1)`;
  const vector = of.cache.vectorOf(wgsl`key`);
  return wgsl`
    // Lanes after the last key compute unused scores.
    let key = ${key};
    let key_at = (${vector}) * ${pairs ? o.dim / 2 : o.dim};
    ${
    vectors &&
    wgsl`@unroll (${each}) { let q_vector[t][h] = row[t][h] * ${
      o.dim / WIDTH
    }; }`
  }
    ${dot}
    @unroll (${each}) {
      let score[t][h] = dot[t][h] * ${o.scale};
      scores[lane + ${offsetOf(of)}] = score[t][h];
    }`;
}

/** Elements of a query that a lane loads at once. */
const WIDTH = 4;

/** The products of some words of a key, all of which are loaded before the first product. */
function productsAtOnce(
  { tokens, heads, each, keys, stored }: Queries,
  { pairs, words }: {
    readonly pairs: HalfDType | undefined;
    readonly words: number;
  },
): KernelText {
  const count = pairs ? 2 * words : words;
  const of = (t: number, h: number) => `q_value${t}_${h}`;
  const query = (n: number) =>
    range(tokens).flatMap((t) =>
      range(heads).map((h) =>
        loadRegisters(of(t, h), range(WIDTH).map((m) => n + m), {
          binding: "q",
          type: "f32",
          index: expr`${register("q_from", [t, h], "u32")} + ${n / WIDTH}`,
        })
      )
    );
  const product = (n: number, key: Expr) => [
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
    ${
    range(words).map((n) => {
      const element = wgsl`let element_${n} = key_at + d * ${words} + ${n};`;
      const index = local(`element_${n}`, "u32");
      return pairs
        ? wgsl`${element} let key_pair_${n} = ${keys}[${index}];`
        : wgsl`${element} let key_${n} = ${loadStored(keys, stored, index)};`;
    })
  }
    ${
    range(words).flatMap((n) => {
      if (!pairs) return product(n, local(`key_${n}`, "f32"));
      const both = unpackHalves(pairs, local(`key_pair_${n}`, "u32"));
      return both.flatMap((key, odd) => [
        letRegister("key_value", [2 * n + odd], key),
        ...product(2 * n + odd, register("key_value", [2 * n + odd])),
      ]);
    })
  }`;
}
