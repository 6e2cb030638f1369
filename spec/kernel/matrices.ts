/** Statements on matrices: construction, and the expansion to plain statements, which defines their results. */

import { range } from "../range.ts";
import {
  add,
  and,
  barrier,
  call,
  div,
  f32,
  fma,
  for_,
  id,
  if_,
  let_,
  local,
  lt,
  max,
  min,
  mul,
  rem,
  shared,
  u32,
} from "./build.ts";
import { cachedJson, exactJson } from "./exact_json.ts";
import {
  declareEach,
  indicesBelow,
  letRegister,
  register,
  registers,
  setEach,
} from "./registers.ts";
import { bodiesOf, mapStatement, walkExpressions } from "./walk.ts";
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
interface TileShare {
  readonly rows: number;
  readonly columns: number;
}

/** The share of an invocation. Undefined if the invocations do not divide the tile. */
function tileShare(
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
function isMatrixStmt(
  s: MatrixStmt,
): s is MatrixTile | MultiplyStmt | ResultsStmt {
  return s.op === "matrices" || s.op === "multiply" || s.op === "results";
}

/** The statements on matrices in a body. */
export function matrixStatements(
  body: readonly MatrixStmt[],
): readonly (MatrixTile | MultiplyStmt | ResultsStmt)[] {
  return body.flatMap((s) =>
    isMatrixStmt(s) ? [s] : bodiesOf(s).flatMap(matrixStatements)
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
 * of an element one after another. Undefined unless the form has exactly one tile, which invocations divide.
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
  return replaceMatrices(body, (s) => {
    switch (s.op) {
      case "matrices":
        return declared(s, share);
      case "multiply":
        return multiplied(s, tile, share);
      case "results":
        return results(s, tile, share);
    }
  });
}

/** A body with other statements in place of those on matrices. */
function replaceMatrices(
  body: readonly MatrixStmt[],
  of: (s: MatrixTile | MultiplyStmt | ResultsStmt) => readonly Stmt[],
): readonly Stmt[] {
  return body.flatMap((s) =>
    isMatrixStmt(s) ? of(s) : [mapStatement(s as Stmt, {
      body: (inner) => replaceMatrices(inner, of),
    })]
  );
}

const ROW = local("tile_row", "u32"), COLUMN = local("tile_column", "u32");

function declared({ names }: MatrixTile, share: TileShare): readonly Stmt[] {
  return [
    let_("tile_row", mul(div(id("local"), u32(ACROSS)), u32(share.rows))),
    let_("tile_column", rem(id("local"), u32(ACROSS))),
    ...names.flatMap((name) =>
      declareEach(registers(name, share.rows, share.columns))
    ),
  ];
}

function multiplied(
  { left, depth, products }: MultiplyStmt,
  { columns }: MatrixTile,
  share: TileShare,
): readonly Stmt[] {
  const k = local("tile_k", "u32");
  const from = local("tile_left", "u32"), right = local("tile_right", "u32");
  return [
    barrier(),
    let_("tile_left", mul(ROW, u32(depth))),
    for_("tile_k", u32(0), u32(depth), [
      let_("tile_right", add(mul(k, u32(columns)), COLUMN)),
      ...range(share.rows).map((r) =>
        letRegister(
          "tile_a",
          [r],
          shared(left, add(from, k, u32(r * depth)), "f32"),
        )
      ),
      ...products.flatMap((product, i) =>
        range(share.columns).map((c) =>
          letRegister(
            `tile_b${i}`,
            [c],
            shared(product.right, add(right, u32(c * ACROSS)), "f32"),
          )
        )
      ),
      ...products.flatMap(({ name }, i) =>
        setEach(
          registers(name, share.rows, share.columns),
          "",
          (sumOf, { indices: [r, c] }) =>
            fma(
              register("tile_a", [r!]),
              register(`tile_b${i}`, [c!]),
              sumOf(""),
            ),
        )
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
    ...indicesBelow(share.rows, share.columns).map((indices) =>
      ofElement(s, {
        row: add(ROW, u32(indices[0]!)),
        column: add(COLUMN, u32(indices[1]! * ACROSS)),
        values: names.map((name) => register(name, indices)),
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
  return call("roundF16", max(min(value, f32(MAX_F16)), f32(-MAX_F16)));
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
  const plain = replaceMatrices(
    form,
    (s) =>
      s.op === "results"
        ? [ofElement(s, {
          row: u32(0),
          column: u32(0),
          values: s.values.map(() => f32(0)),
        })]
        : [],
  );
  walkExpressions(plain, (e) => {
    if (e.op === "shared" && operands.has(e.array)) {
      faults.push(`it loads from operand '${e.array}'`);
    }
  });
  return faults;
}
