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
import type { MatmulOptions, MatmulWeight } from "./matmul_tile.ts";

/** Consecutive columns of one invocation: the two that share a word where weights are packed. */
export function unitOf(o: MatmulOptions): number {
  const unit = o.weights.some((w) => isPacked(w.stored)) ? 2 : 1;
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  return unit;
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
 * column<c>: the result's. at<w>_<c>: where weight w of that column is read at k = 0, in elements, or in words where
 * packed. Lanes stand side by side, so that their loads are contiguous. Beyond the last column something is read, and
 * nothing written.
 */
export function columnsAndWeights(o: MatmulOptions, lanes: number): Stmt[] {
  const unit = unitOf(o);
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
      const base = ofExpert(o, w.rowStride / perWord(w.stored));
      return range(o.tile.columns).filter((c) => !packed || c % 2 === 0)
        .map((c): Stmt => {
          const from = packed ? u(`unit${c / 2}`) : u(`column${c}`);
          return let_(`at${i}_${c}`, add(base, from));
        }).concat(w.scales === undefined ? [] : scalePlaces(o, w, i));
    }),
  ];
}

/** Where the weights of the tile's expert start, whose rows have `rowWords` words. */
function ofExpert({ k, grouped }: MatmulOptions, rowWords: number): Expr {
  if (!grouped) return u32(0);
  invariant(typeof k === "number", "experts' weights have one size");
  return mul(u("expert"), u32(k * rowWords));
}

/** scale<w>_<c>: where the scales of weight w of that column start. */
function scalePlaces(o: MatmulOptions, w: MatmulWeight, i: number): Stmt[] {
  const base = ofExpert(o, w.rowStride / 32);
  return range(o.tile.columns).map((c) =>
    let_(`scale${i}_${c}`, add(base, u(`column${c}`)))
  );
}

/** b<number>_<c>: one weight's values at k for every column. */
export function rightRow(
  w: MatmulWeight,
  number: string,
  at: { readonly k: Expr; readonly columns: number },
): Stmt[] {
  const { stored } = w;
  if (stored === "mxfp4") return blockRow(w, number, at);
  if (!isPacked(stored)) {
    const row = mul(at.k, u32(w.rowStride));
    return range(at.columns).map((c) =>
      let_(`b${number}_${c}`, load(w.binding, add(u(`at${number}_${c}`), row)))
    );
  }
  const row = mul(at.k, u32(w.rowStride / 2));
  return range(at.columns / 2).flatMap((j) => {
    const word = u(`word${number}_${2 * j}`);
    const index = add(u(`at${number}_${2 * j}`), row);
    return [
      let_(`word${number}_${2 * j}`, load(w.binding, index, "u32")),
      let_(`b${number}_${2 * j}`, unpackLow(stored, word)),
      let_(`b${number}_${2 * j + 1}`, unpackHigh(stored, word)),
    ];
  });
}

/** The same from MXFP4 blocks; products with a power of two are exact. */
function blockRow(
  w: MatmulWeight,
  number: string,
  at: { readonly k: Expr; readonly columns: number },
): Stmt[] {
  const along = (shift: number) =>
    mul(binary("shr", at.k, u32(shift)), u32(w.rowStride));
  const bit = mul(binary("and", at.k, u32(7)), u32(4));
  return range(at.columns).flatMap((c) => {
    const [bits, scale] = [`bits${number}_${c}`, `power${number}_${c}`];
    const word = load(w.binding, add(u(`at${number}_${c}`), along(3)), "u32");
    const exponent = load(
      w.scales!,
      add(u(`scale${number}_${c}`), along(5)),
      "u32",
    );
    return [
      let_(bits, binary("shr", word, bit)),
      let_(scale, bitcast("f32", binary("shl", exponent, u32(23)))),
      let_(`b${number}_${c}`, mul(unpackFp4(u(bits)), f(scale))),
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
