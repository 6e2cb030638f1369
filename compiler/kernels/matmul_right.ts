/** The right operand of a matrix multiplication: where lanes find their columns, and how weights become numbers. */

import type { FileDType } from "../../spec/dtype.ts";
import { invariant } from "../../spec/errors.ts";
import {
  add,
  binary,
  bitcast,
  eq,
  id,
  let_,
  load,
  loads,
  local,
  lt,
  mul,
  rem,
  select,
  u32,
  unpackHigh,
  unpackLow,
} from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { bindingsOf } from "./kernel.ts";
import type { MatmulOptions } from "./matmul_tile.ts";

/** Consecutive columns of one invocation: those of words that are loaded at once, two to a word where weights are packed. */
export function unitOf(o: MatmulOptions): number {
  const unit = widthOf(o) * (o.weights.some((w) => isPacked(w.stored)) ? 2 : 1);
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  return unit;
}

/** Words that are loaded at once. */
function widthOf(o: MatmulOptions): number {
  if (o.tile.right !== "vector") return 1;
  const left = bindingsOf(o.left(o.leftRow(u32(0)), u32(0)));
  // What is loaded in vectors is loaded in no other way.
  if (o.weights.some(({ binding }) => left.has(binding))) return 1;
  return [4, 2].find((width) =>
    o.weights.every(({ stored, rowStride }) => {
      const unit = width * (isPacked(stored) ? 2 : 1);
      return isPacked(stored) === isPacked(o.weights[0]!.stored) &&
        rowStride % unit === 0 && o.tile.columns % unit === 0;
    })
  ) ?? 1;
}

function isPacked(stored: FileDType): stored is "f16" | "bf16" {
  return stored === "f16" || stored === "bf16";
}

/** Elements of a weight in one word of its binding. */
function perWord(stored: FileDType): number {
  return isPacked(stored) ? 2 : stored === "mxfp4" ? 8 : 1;
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}

/**
 * column<c>: the result's. at<w>_<c>: where weight w of that column is read at k = 0, in what is loaded at
 * once; scale<w>_<c>: where its scales start. Lanes stand side by side, so that their loads are contiguous. Beyond the last column something is read, and
 * nothing written.
 */
export function columnsAndWeights(o: MatmulOptions, lanes: number): Stmt[] {
  const [unit, width] = [unitOf(o), widthOf(o)];
  const perGroup = o.tile.columns * lanes / unit;
  const laneColumn = add(
    mul(id("group.y"), u32(perGroup)),
    rem(id("local"), u32(lanes)),
  );
  return [
    let_("lane_unit", laneColumn),
    ...range(o.tile.columns / unit).flatMap((j) => [
      let_(`unit${j}`, add(u("lane_unit"), u32(j * lanes))),
      ...range(unit).map((i) =>
        let_(
          `column${j * unit + i}`,
          add(mul(u(`unit${j}`), u32(unit)), u32(i)),
        )
      ),
    ]),
    ...o.weights.flatMap((w, i) => {
      const packed = isPacked(w.stored);
      invariant(!packed || w.rowStride % 2 === 0, "packed rows are even");
      const apart = packed || width > 1 ? unit : 1;
      const places = (name: string, perWord: number) => {
        const base = ofExpert(o, w.rowStride / perWord / width);
        return range(o.tile.columns / apart).map((j) => {
          const from = u(apart > 1 ? `unit${j}` : `column${j}`);
          return let_(`${name}${i}_${j * apart}`, add(base, from));
        });
      };
      return [
        ...places("at", perWord(w.stored)),
        ...w.scales === undefined ? [] : places("scale", 32),
      ];
    }),
  ];
}

/** Where the weights of the tile's expert start, whose rows have `rowWords` words. */
function ofExpert({ k, grouped }: MatmulOptions, rowWords: number): Expr {
  if (!grouped) return u32(0);
  invariant(typeof k === "number", "experts' weights have one size");
  return mul(u("expert"), u32(k * rowWords));
}

/** b<i>_<c>: the values of weight i at k for every column. */
export function rightRow(o: MatmulOptions, i: number, k: Expr): Stmt[] {
  const w = o.weights[i]!;
  const width = widthOf(o);
  const { stored } = w;
  if (stored === "mxfp4") return blockRow(o, i, k);
  const packed = isPacked(stored);
  const row = mul(k, u32(w.rowStride / perWord(stored) / width));
  const each = packed ? 2 : 1;
  return range(o.tile.columns / width / each).flatMap((j) => {
    const first = j * width * each;
    const name = packed ? "word" : "b";
    const words = range(width).map((n) => `${name}${i}_${first + n * each}`);
    return [
      fetch(words, {
        binding: w.binding,
        index: add(u(`at${i}_${first}`), row),
        type: packed ? "u32" : "f32",
      }),
      ...packed
        ? words.flatMap((word, n) => [
          let_(`b${i}_${first + 2 * n}`, unpackLow(stored, u(word))),
          let_(`b${i}_${first + 2 * n + 1}`, unpackHigh(stored, u(word))),
        ])
        : [],
    ];
  });
}

/** Name words that lie together. */
function fetch(
  names: readonly string[],
  from: {
    readonly binding: string;
    readonly index: Expr;
    readonly type: "f32" | "u32";
  },
): Stmt {
  return names.length === 1
    ? let_(names[0]!, load(from.binding, from.index, from.type))
    : loads(names, from);
}

/** The same from MXFP4 blocks; products with a power of two are exact. */
function blockRow(o: MatmulOptions, i: number, k: Expr): Stmt[] {
  const w = o.weights[i]!;
  const width = widthOf(o);
  const along = (shift: number) =>
    mul(binary("shr", k, u32(shift)), u32(w.rowStride / width));
  const bit = mul(binary("and", k, u32(7)), u32(4));
  return range(o.tile.columns / width).flatMap((j) => {
    const first = j * width;
    const columns = range(width).map((n) => first + n);
    const codes = columns.map((c) => `codes${i}_${c}`);
    const exponents = columns.map((c) => `exponent${i}_${c}`);
    const from = { binding: w.binding, type: "u32" } as const;
    return [
      fetch(codes, { ...from, index: add(u(`at${i}_${first}`), along(3)) }),
      fetch(exponents, {
        ...{ ...from, binding: w.scales! },
        index: add(u(`scale${i}_${first}`), along(5)),
      }),
      ...columns.flatMap((c, n) => {
        const [bits, scale] = [`bits${i}_${c}`, `power${i}_${c}`];
        const power = binary("shl", u(exponents[n]!), u32(23));
        return [
          let_(bits, binary("shr", u(codes[n]!), bit)),
          let_(scale, bitcast("f32", power)),
          let_(`b${i}_${c}`, mul(unpackFp4(u(bits)), f(scale))),
        ];
      }),
    ];
  });
}

/** The value of the lowest four bits: a sign, two bits of exponent, one of mantissa; 1 is 0.5. */
function unpackFp4(bits: Expr): Expr {
  const magnitude = binary("and", bits, u32(7));
  const sign = binary("shl", binary("and", bits, u32(8)), u32(28));
  const normal = add(binary("shl", magnitude, u32(22)), u32(126 << 23));
  const small = select(eq(magnitude, u32(1)), u32(126 << 23), u32(0));
  const value = select(lt(magnitude, u32(2)), small, normal);
  return bitcast("f32", binary("or", sign, value));
}

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}
