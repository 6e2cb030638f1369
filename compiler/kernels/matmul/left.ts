/** The left operand of a matrix multiplication: loaded by each lane, or once into workgroup memory. */

import { invariant } from "../../../spec/errors.ts";
import { add, shared, u32 } from "../../../spec/kernel/build.ts";
import { clamped } from "../../../spec/kernel/guards.ts";
import type { Expr, Hole, KernelText, Statements, Stmt } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { isStaged } from "../../tuning/lanes.ts";
import { equalBlocks } from "../../tuning/tile.ts";
import type { MatmulOptions } from "./options.ts";
import { letRegister, register } from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";

/** Rows of the left operand in a part of a kernel. */
export interface LeftRows {
  /** Rows of one lane, equal to those of its team: from `first`, or from `team_first` if teams have different rows. */
  readonly rows: number;
  /** Rows of all teams of the workgroup, from `first`. */
  readonly ofGroup: number;
  /** Number of indices along k in memory at a time, starting at a multiple of it. */
  readonly stretch: number;
  /** The variable with the first row of the workgroup. Default: `first`. */
  readonly from?: string;
  /** Whether all lanes wait for each other after the products of a stretch, before the next one is loaded. */
  readonly waits: boolean;
}

/** Access of products to the left operand. */
export interface Left {
  /** row[r], and code per row. */
  readonly prepare: KernelText;
  /** Code before the products of a stretch of k, if any; it ends with a barrier. */
  before?(start: KernelText): KernelText;
  /** The value of row[r] at index `k`. Default: `k`. */
  at(r: number, k?: string): Expr;
  /** Declares adjacent values of row[r] from index `k`, if they can be loaded at once. */
  adjacent?(r: number, k: string, names: readonly string[]): readonly Stmt[];
}

/** The left operand in the form of the tile. */
export function leftOf(o: MatmulOptions, rows: LeftRows): Left {
  return isStaged(o) ? staged(o, rows) : inRegisters(o, rows);
}

/** A u32 variable of the text. */
export function u(name: string): Expr {
  return local(name, "u32");
}

/** Code per row. After the last row, the last row is read again and not written. */
function prepared(o: MatmulOptions, row: Expr): Expr {
  return o.leftRow(clamped(row, u("end")));
}

/** The variable with the first row of a lane. */
function firstOf({ rows, ofGroup, from = "first" }: LeftRows): string {
  return rows === ofGroup ? from : "team_first";
}

function inRegisters(o: MatmulOptions, of: LeftRows): Left {
  const { leftAdjacent } = o;
  return {
    prepare: wgsl`${
      range(of.rows).flatMap((r) => [
        letRegister("row", [r], add(u(firstOf(of)), u32(r))),
        letRegister("left", [r], prepared(o, register("row", [r], "u32"))),
      ])
    }`,
    at: (r, k = "k") => o.left(register("left", [r], "u32"), u(k)),
    ...leftAdjacent
      ? {
        adjacent: (r: number, k: string, names: readonly string[]) =>
          leftAdjacent(register("left", [r], "u32"), u(k), names),
      }
      : {},
  };
}

/**
 * Lanes load a stretch of all rows together and wait. Memory contains two stretches if no barrier follows the products:
 * a faster lane then writes where others no longer read. `left_tile` f32 [row, k], `left_rows` u32 [row].
 */
function staged(o: MatmulOptions, of: LeftRows): Left {
  const { rows, ofGroup, stretch } = of;
  const depth = of.waits ? stretch : 2 * stretch;
  const { lanes } = o.tile;
  const blocks = equalBlocks(o);
  invariant(blocks, "a staged left operand has equal blocks");
  const length = blocks.length * blocks.count;
  /** Each element once, by one lane. */
  const each = (count: number, body: Statements) =>
    wgsl`
      for (var turn = 0u; turn < ${Math.ceil(count / lanes)}; turn++) {
        let element = turn * ${lanes} + lane;
        ${guarded(count % lanes !== 0, wgsl`element < ${count}`, body)}
      }`;
  const row = prepared(o, expr`${u(of.from ?? "first")} + ${u("element")}`);
  const value = o.left(shared("left_rows", u("of_row"), "u32"), u("at_k"));
  const store = wgsl`
    left_tile[of_row * ${depth} + at_k % ${depth}] = ${value};`;
  const loaded = (start: KernelText) =>
    wgsl`
    let of_row = element / ${stretch};
    let at_k = ${start} + element % ${stretch};
    ${guarded(length % stretch !== 0, wgsl`at_k < ${length}`, store)}`;
  const before = rows === ofGroup
    ? u32(0)
    : expr`${u("team_first")} - ${u("first")}`;
  return {
    prepare: wgsl`
      var<workgroup> left_tile: array<f32, ${ofGroup * depth}>;
      var<workgroup> left_rows: array<u32, ${ofGroup}>;
      @unroll (r < ${rows}) { let row[r] = ${firstOf(of)} + r; }
      ${each(ofGroup, wgsl`left_rows[element] = ${row};`)}
      workgroupBarrier();`,
    before: (start) =>
      wgsl`
        ${each(ofGroup * stretch, loaded(start))}
        workgroupBarrier();`,
    at: (r, k = "k") => {
      const row = expr`${before} + ${r}`;
      return shared("left_tile", expr`${row} * ${depth} + ${u(k)} % ${depth}`);
    },
  };
}

/** Statements, under a condition if they need one. */
export function guarded(
  needed: boolean,
  condition: Hole,
  body: Statements,
): Statements {
  return needed ? wgsl`if (${condition}) { ${body} }` : body;
}
