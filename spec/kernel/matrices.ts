/** Statements on matrices: construction, and the expansion to plain statements, which defines their results. */

import {
  add,
  and,
  barrier,
  binary,
  div,
  f32,
  fma,
  for_,
  id,
  if_,
  let_,
  local,
  lt,
  mul,
  rem,
  set,
  shared,
  u32,
  var_,
} from "./build.ts";
import { cachedJson, exactJson } from "./exact_json.ts";
import { registerName } from "./register_name.ts";
import { walkExpressions } from "./walk.ts";
import type {
  Expr,
  Kernel,
  MatrixStmt,
  MatrixTile,
  MultiplyStmt,
  ResultsStmt,
  Stmt,
} from "./tree.ts";

/** Invocations with adjacent columns of a tile. */
const ACROSS = 32;

/** Rows, columns and depth of a subgroup matrix. */
export const MATRIX_SIZE = 16;

/** A statement on matrices as a hole of kernel text. */
export function statement(s: MatrixTile | MultiplyStmt | ResultsStmt): Stmt {
  return s as MatrixStmt as Stmt;
}

/** The part of a tile that one invocation computes in the expansion. */
export interface TileShare {
  readonly rows: number;
  readonly columns: number;
}

/** The share of an invocation. Undefined if the invocations do not divide the tile. */
export function tileShare(
  { rows, columns }: Pick<MatrixTile, "rows" | "columns">,
  lanes: number,
): TileShare | undefined {
  const share = { rows: rows * ACROSS / lanes, columns: columns / ACROSS };
  return lanes % ACROSS === 0 && Number.isInteger(share.rows) &&
      Number.isInteger(share.columns) && share.rows > 0
    ? share
    : undefined;
}

/** Whether a statement is one on matrices. */
export function isMatrixStmt(
  s: MatrixStmt,
): s is MatrixTile | MultiplyStmt | ResultsStmt {
  return s.op === "matrices" || s.op === "multiply" || s.op === "results";
}

/** Bodies of a loop or a condition. */
function innerOf(s: MatrixStmt): readonly (readonly MatrixStmt[])[] {
  if (s.op === "for") return [s.body];
  return s.op === "if" ? [s.then, s.else ?? []] : [];
}

/** The statements on matrices in a body. */
export function matrixStatements(
  body: readonly MatrixStmt[],
): readonly (MatrixTile | MultiplyStmt | ResultsStmt)[] {
  return body.flatMap((s) =>
    isMatrixStmt(s) ? [s] : innerOf(s).flatMap(matrixStatements)
  );
}

/** The tile of a matrix form. Undefined unless it declares exactly one. */
export function tileOfForm(
  body: readonly MatrixStmt[],
): MatrixTile | undefined {
  const [tile, ...others] = matrixStatements(body)
    .filter((s) => s.op === "matrices");
  return others.length === 0 ? tile : undefined;
}

/** Names of the arrays that are operands of products: they have elements of f16 on devices with subgroup matrices. */
export function operandArrays(body: readonly MatrixStmt[]): Set<string> {
  return new Set(
    matrixStatements(body).flatMap((s) =>
      s.op === "multiply"
        ? [s.left, ...s.products.map(({ right }) => right)]
        : []
    ),
  );
}

/**
 * The plain statements of a matrix form. Each invocation computes a part of the tile in registers; it adds the products
 * of an element one after another. Undefined if the form has no tile of its own, or one that invocations do not divide.
 */
export function expandMatrices(
  form: readonly MatrixStmt[],
  lanes: number,
): readonly Stmt[] | undefined {
  const tile = tileOfForm(form);
  const share = tile && tileShare(tile, lanes);
  return tile && share ? expandAll(form, tile, share) : undefined;
}

function expandAll(
  body: readonly MatrixStmt[],
  tile: MatrixTile,
  share: TileShare,
): readonly Stmt[] {
  return body.flatMap((s): readonly Stmt[] => {
    switch (s.op) {
      case "matrices":
        return declared(s, share);
      case "multiply":
        return multiplied(s, tile, share);
      case "results":
        return results(s, tile, share);
      case "for":
        return [{ ...s, body: expandAll(s.body, tile, share) }];
      case "if":
        return [{
          ...s,
          then: expandAll(s.then, tile, share),
          ...s.else ? { else: expandAll(s.else, tile, share) } : {},
        } as Stmt];
      default:
        return [s];
    }
  });
}

const ROW = local("tile_row", "u32"), COLUMN = local("tile_column", "u32");

/** The integers below `n`. */
export function range(n: number): readonly number[] {
  return Array.from({ length: n }, (_, i) => i);
}

/** Each element of a share: its row and column in the tile, and the indices of its register. */
function elements(
  { rows, columns }: TileShare,
): readonly { row: Expr; column: Expr; indices: readonly number[] }[] {
  return range(rows).flatMap((r) =>
    range(columns).map((c) => ({
      row: rowOf(r),
      column: columnOf(c),
      indices: [r, c],
    }))
  );
}

function rowOf(r: number): Expr {
  return r === 0 ? ROW : add(ROW, u32(r));
}

function columnOf(c: number): Expr {
  return c === 0 ? COLUMN : add(COLUMN, u32(c * ACROSS));
}

function declared({ names }: MatrixTile, share: TileShare): readonly Stmt[] {
  return [
    let_("tile_row", mul(div(id("local"), u32(ACROSS)), u32(share.rows))),
    let_("tile_column", rem(id("local"), u32(ACROSS))),
    ...names.flatMap((name) =>
      elements(share).map(({ indices }) =>
        var_(registerName(name, indices), f32(0))
      )
    ),
  ];
}

function multiplied(
  { left, depth, products }: MultiplyStmt,
  { columns }: MatrixTile,
  share: TileShare,
): readonly Stmt[] {
  const k = local("tile_k", "u32");
  const a = (r: number) => registerName("tile_a", [r]);
  const b = (i: number, c: number) => registerName(`tile_b${i}`, [c]);
  const right = local("tile_right", "u32");
  return [
    barrier(),
    let_("tile_left", mul(ROW, u32(depth))),
    for_("tile_k", u32(0), u32(depth), [
      let_("tile_right", add(mul(k, u32(columns)), COLUMN)),
      ...range(share.rows).map((r) => {
        const at = add(local("tile_left", "u32"), k);
        return let_(
          a(r),
          shared(left, r === 0 ? at : add(at, u32(r * depth)), "f32"),
        );
      }),
      ...products.flatMap((product, i) =>
        range(share.columns).map((c) => {
          const at = c === 0 ? right : add(right, u32(c * ACROSS));
          return let_(b(i, c), shared(product.right, at, "f32"));
        })
      ),
      ...products.flatMap(({ name }, i) =>
        elements(share).map(({ indices }) => {
          const sum = registerName(name, indices);
          const [r, c] = indices;
          return set(
            sum,
            fma(
              local(a(r!), "f32"),
              local(b(i, c!), "f32"),
              local(sum, "f32"),
            ),
          );
        })
      ),
    ]),
  ];
}

function results(
  s: ResultsStmt,
  { names }: MatrixTile,
  share: TileShare,
): readonly Stmt[] {
  return [
    barrier(),
    ...elements(share).map(({ row, column, indices }) =>
      ofElement(s, {
        row,
        column,
        values: names.map((name) => local(registerName(name, indices), "f32")),
      })
    ),
  ];
}

/** The body of `results` for one element of the tile. */
export function ofElement(
  { row, column, values, body }: ResultsStmt,
  element: {
    readonly row: Expr;
    readonly column: Expr;
    readonly values: readonly Expr[];
  },
): Stmt {
  const at = {
    row: add(row.from, element.row),
    column: add(column.from, element.column),
  };
  return if_(and(lt(at.row, row.end), lt(at.column, column.end)), [
    let_(row.name, at.row),
    let_(column.name, at.column),
    ...values.map((name, i) => let_(name, element.values[i]!)),
    ...body,
  ]);
}

/** The largest number that f16 can represent. */
export const MAX_F16 = 65504;

/** An f32 value as an operand of a product: rounded to f16, limited to its largest finite number. */
export function operand16(value: Expr): Expr {
  const limited = binary(
    "max",
    binary("min", value, f32(MAX_F16)),
    f32(-MAX_F16),
  );
  return { op: "call", type: "f32", fn: "roundF16", args: [limited] };
}

/** The plain statements of a form, without those on matrices. */
function plainOf(body: readonly MatrixStmt[]): readonly Stmt[] {
  return body.flatMap((s): readonly Stmt[] => {
    if (s.op === "results") return s.body;
    if (isMatrixStmt(s)) return [];
    if (s.op === "for") return [{ ...s, body: plainOf(s.body) }];
    if (s.op !== "if") return [s];
    const { condition, then, else: others = [] } = s;
    return [if_(condition, plainOf(then), plainOf(others))];
  });
}

/**
 * Errors of a kernel's matrix form: its expansion differs from the body; sizes are no multiples of 16; operands have other
 * lengths than the tile, or are read by other statements, though their elements are f16.
 */
export function matrixFaults(
  { matrixForm: form, shared: arrays, body, workgroupSize }: Kernel,
): readonly string[] {
  if (!form) return [];
  const tile = tileOfForm(form);
  const expanded = expandMatrices(form, workgroupSize);
  if (!tile || !expanded) {
    return ["its matrix form does not declare one tile of its invocations"];
  }
  const faults: string[] = [];
  if (exactJson(expanded) !== cachedJson(body)) {
    faults.push("its body is not the expansion of its matrix form");
  }
  const sizes = [tile.rows, tile.columns];
  const lengths = new Map(arrays.map(({ name, length }) => [name, length]));
  for (const s of matrixStatements(form)) {
    const { length } = tile.names;
    if (s.op === "results" && s.values.length !== length) {
      faults.push(
        `it has ${s.values.length} values for results of ${length} matrices`,
      );
    }
    if (s.op !== "multiply") continue;
    sizes.push(s.depth);
    if (s.products.some(({ name }) => !tile.names.includes(name))) {
      faults.push("it multiplies into a matrix that its tile does not have");
    }
    const operands = [
      { name: s.left, length: tile.rows * s.depth },
      ...s.products.map(({ right }) => ({
        name: right,
        length: tile.columns * s.depth,
      })),
    ];
    for (const { name, length } of operands) {
      if (lengths.get(name) === length) continue;
      faults.push(`it multiplies ${length} elements of array '${name}'`);
    }
  }
  if (sizes.some((size) => size % MATRIX_SIZE !== 0)) {
    faults.push(`its matrices are not multiples of ${MATRIX_SIZE}: ${sizes}`);
  }
  const operands = operandArrays(form);
  walkExpressions(plainOf(form), (e) => {
    if (e.op === "shared" && operands.has(e.array)) {
      faults.push(`it loads from operand '${e.array}'`);
    }
  });
  return faults;
}
