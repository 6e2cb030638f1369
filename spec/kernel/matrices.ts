/** Statements on matrices: construction, and the expansion to plain statements, which defines their results. */

import { range } from "../range.ts";
import { isSame } from "../same.ts";
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
  sharedStore,
  u32,
} from "./build.ts";
import { exactJson } from "./exact_json.ts";
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
  MatrixStoreStmt,
  MatrixTile,
  MultiplyStmt,
  ResultsStmt,
  ScaleRowsStmt,
  Stmt,
} from "./tree.ts";

/** Invocations with adjacent columns of a tile. */
const ACROSS = 32;

/** Rows, columns and depth of a subgroup matrix. */
export const MATRIX_SIZE = 16;

/** A statement on matrices. */
export type OnMatrices =
  | MatrixTile
  | MultiplyStmt
  | MatrixStoreStmt
  | ScaleRowsStmt
  | ResultsStmt;

/** A statement on matrices as a hole of kernel text. */
export function statement(s: OnMatrices): Stmt {
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
function isMatrixStmt(s: MatrixStmt): s is OnMatrices {
  return s.op === "matrices" || s.op === "multiply" ||
    s.op === "storeMatrix" || s.op === "scaleRows" || s.op === "results";
}

/** The statements on matrices in a body. */
export function matrixStatements(
  body: readonly MatrixStmt[],
): readonly OnMatrices[] {
  return body.flatMap((s) =>
    isMatrixStmt(s) ? [s] : bodiesOf(s).flatMap(matrixStatements)
  );
}

/** The different tiles of a matrix form, in order. */
export function tilesOfForm(body: readonly MatrixStmt[]): MatrixTile[] {
  const tiles = new Map<string, MatrixTile>();
  for (const s of matrixStatements(body)) {
    if (s.op === "matrices") tiles.set(exactJson(s), s);
  }
  return [...tiles.values()];
}

/** Elements from row to row of the operands of a product with a tile of `columns`. */
export function operandStrides(
  { depth, leftStride = depth, rightStride, transposed }: MultiplyStmt,
  columns: number,
): { readonly left: number; readonly right: number } {
  return {
    left: leftStride,
    right: rightStride ?? (transposed ? depth : columns),
  };
}

/** The matrices that a statement uses, all of one tile. */
function matricesIn(s: OnMatrices): readonly string[] {
  switch (s.op) {
    case "matrices":
    case "scaleRows":
    case "results":
      return s.names;
    case "multiply":
      return s.products.map(({ name }) => name);
    case "storeMatrix":
      return [s.name];
  }
}

/** The tile of the matrices that a statement uses. Undefined: they are not matrices of one tile. */
export function tileOfStatement<T extends Pick<MatrixTile, "names">>(
  tiles: readonly T[],
  s: OnMatrices,
): T | undefined {
  const used = matricesIn(s);
  return tiles.find(({ names }) => used.every((name) => names.includes(name)));
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
 * The plain statements of a matrix form. Each invocation computes a part of each tile in registers; it adds the
 * products of an element one after another. Undefined unless the form has tiles with the same rows and different names,
 * which invocations divide, and uses the matrices of one tile at a time.
 */
export function expandMatrices(
  form: readonly MatrixStmt[],
  lanes: number,
): readonly Stmt[] | undefined {
  const tiles = tilesOfForm(form).flatMap((tile): SharedTile[] => {
    const share = tileShare(tile, lanes);
    return share ? [{ ...tile, share }] : [];
  });
  const [first] = tiles;
  const all = matrixStatements(form);
  const names = tiles.flatMap(({ names }) => names);
  const isForm = first && tiles.every(({ rows }) => rows === first.rows) &&
    new Set(names).size === names.length &&
    all.every((s) => tileOfStatement(tiles, s));
  if (!isForm) return undefined;
  return [
    let_("tile_row", mul(div(id("local"), u32(ACROSS)), u32(first.share.rows))),
    let_("tile_column", rem(id("local"), u32(ACROSS))),
    ...replaceMatrices(
      rowMajor(form, tiles),
      (s) => expanded(s, tileOfStatement(tiles, s)!),
    ),
  ];
}

/** Columns of all operands of transposed products. */
function allColumns(s: MultiplyStmt, columns: number): number {
  const { right } = operandStrides(s, columns);
  return columns + Math.max(...s.products.map(({ from = 0 }) => from)) / right;
}

/**
 * A form whose stores are those of an expansion: elements of a transposed operand are stored [depth, column]. An
 * operand is that of the next product, `next`.
 */
function rowMajor(
  body: readonly MatrixStmt[],
  tiles: readonly MatrixTile[],
  next: ReadonlyMap<string, MultiplyStmt> = new Map(),
): readonly MatrixStmt[] {
  const uses = new Map(next);
  const changed = body.toReversed().map((s): MatrixStmt => {
    if (s.op === "multiply") {
      for (const { right } of s.products) uses.set(right, s);
    }
    if (s.op !== "sharedStore") {
      return isMatrixStmt(s) || bodiesOf(s).length === 0
        ? s
        : mapStatement(s as Stmt, {
          body: (inner) => rowMajor(inner, tiles, uses) as readonly Stmt[],
        });
    }
    const use = uses.get(s.array);
    if (!use?.transposed) return s;
    const { columns } = tileOfStatement(tiles, use)!;
    const stride = u32(operandStrides(use, columns).right);
    const row = mul(rem(s.index, stride), u32(allColumns(use, columns)));
    return { ...s, index: add(row, div(s.index, stride)) };
  });
  return changed.toReversed();
}

/** A tile and the part of an invocation. */
interface SharedTile extends MatrixTile {
  readonly share: TileShare;
}

function expanded(s: OnMatrices, tile: SharedTile): readonly Stmt[] {
  const { share } = tile;
  switch (s.op) {
    case "matrices":
      return s.names.flatMap((name) =>
        declareEach(registers(name, share.rows, share.columns))
      );
    case "multiply":
      return multiplied(s, tile);
    case "storeMatrix":
      return indicesBelow(share.rows, share.columns).map((indices) => {
        const [row, column] = elementAt(indices);
        const at = add(mul(row, u32(s.stride)), column);
        return sharedStore(s.array, at, register(s.name, indices));
      });
    case "scaleRows":
      return scaledRows(s, tile);
    case "results":
      return results(s, tile);
  }
}

/** A body with other statements in place of those on matrices. */
function replaceMatrices(
  body: readonly MatrixStmt[],
  of: (s: OnMatrices) => readonly Stmt[],
): readonly Stmt[] {
  return body.flatMap((s) =>
    isMatrixStmt(s) ? of(s) : [mapStatement(s as Stmt, {
      body: (inner) => replaceMatrices(inner, of),
    })]
  );
}

const ROW = local("tile_row", "u32"), COLUMN = local("tile_column", "u32");

/** The row and column in a tile of an invocation's element. */
function elementAt([r, c]: readonly number[]): readonly [Expr, Expr] {
  return [add(ROW, u32(r!)), add(COLUMN, u32(c! * ACROSS))];
}

function multiplied(
  s: MultiplyStmt,
  { columns, share }: SharedTile,
): readonly Stmt[] {
  const { left, depth, products } = s;
  const strides = operandStrides(s, columns);
  const rightStride = s.transposed ? allColumns(s, columns) : strides.right;
  // Several products may be in one scope.
  const first = `${products[0]!.name}_left`;
  const k = local("tile_k", "u32");
  const from = local(first, "u32"), right = local("tile_right", "u32");
  return [
    barrier(),
    let_(first, mul(ROW, u32(strides.left))),
    for_("tile_k", u32(0), u32(depth), [
      let_("tile_right", add(mul(k, u32(rightStride)), COLUMN)),
      ...range(share.rows).map((r) =>
        letRegister(
          "tile_a",
          [r],
          shared(left, add(from, k, u32(r * strides.left)), "f32"),
        )
      ),
      ...products.flatMap((product, i) =>
        range(share.columns).map((c) =>
          letRegister(
            `tile_b${i}`,
            [c],
            shared(
              product.right,
              add(right, u32((product.from ?? 0) / strides.right + c * ACROSS)),
              "f32",
            ),
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

function scaledRows(
  { names, factors }: ScaleRowsStmt,
  { share }: SharedTile,
): readonly Stmt[] {
  const factor = (r: number) => register(`${names[0]}_factor`, [r]);
  return [
    barrier(),
    ...range(share.rows).map((r) =>
      letRegister(
        `${names[0]}_factor`,
        [r],
        shared(factors, add(ROW, u32(r)), "f32"),
      )
    ),
    ...names.flatMap((name) =>
      setEach(
        registers(name, share.rows, share.columns),
        "",
        (element, { indices: [r] }) => mul(element(""), factor(Number(r))),
      )
    ),
  ];
}

function results(s: ResultsStmt, { share }: SharedTile): readonly Stmt[] {
  return [
    barrier(),
    ...indicesBelow(share.rows, share.columns).map((indices) => {
      const [row, column] = elementAt(indices);
      const values = s.names.map((name) => register(name, indices));
      return ofElement(s, { row, column, values });
    }),
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
 * Errors of a kernel's matrix form: its expansion differs from the body; sizes are no multiples of 16; arrays are
 * shorter than their matrices; operands are read by other statements, though their elements are f16.
 */
export function matrixFaults(
  { matrixForm: form, shared: arrays, body, workgroupSize }: Kernel,
): readonly string[] {
  if (!form) return [];
  const expanded = expandMatrices(form, workgroupSize);
  if (!expanded) {
    return ["its matrix form does not use tiles of its invocations"];
  }
  const faults: string[] = [];
  if (!isSame(expanded, body)) {
    faults.push("its body is not the expansion of its matrix form");
  }
  const sizes: number[] = [];
  const lengths = new Map(arrays.map(({ name, length }) => [name, length]));
  const tiles = tilesOfForm(form);
  const operands = operandArrays(form);
  const needs = (does: string, name: string, length: number) => {
    if ((lengths.get(name) ?? 0) >= length) return;
    faults.push(`it ${does} ${length} elements of array '${name}'`);
  };
  for (const s of matrixStatements(form)) {
    const { rows, columns, names } = tileOfStatement(tiles, s)!;
    switch (s.op) {
      case "matrices":
        sizes.push(rows, columns);
        break;
      case "multiply": {
        sizes.push(s.depth);
        const strides = operandStrides(s, columns);
        needs("multiplies", s.left, (rows - 1) * strides.left + s.depth);
        const [count, width] = s.transposed
          ? [columns, s.depth]
          : [s.depth, columns];
        for (const { right, from = 0 } of s.products) {
          needs(
            "multiplies",
            right,
            from + (count - 1) * strides.right + width,
          );
          if (from % (s.transposed ? strides.right : Infinity) !== 0) {
            faults.push(
              `it cannot multiply from element ${from} of '${right}'`,
            );
          }
        }
        // Rows of matrices in memory start at multiples of 16 bytes.
        if (
          strides.left < s.depth || strides.right < width ||
          strides.left % 8 !== 0 || strides.right % 8 !== 0
        ) faults.push(`it cannot multiply rows of array '${s.left}'`);
        break;
      }
      case "storeMatrix":
        needs("stores", s.array, (rows - 1) * s.stride + columns);
        // Rows of matrices in memory start at multiples of 16 bytes.
        if (s.stride < columns || s.stride % 4 !== 0 || operands.has(s.array)) {
          faults.push(`it cannot store a matrix in array '${s.array}'`);
        }
        break;
      case "scaleRows":
        needs("scales by", s.factors, rows);
        if (operands.has(s.factors)) {
          faults.push(`it cannot scale by operand '${s.factors}'`);
        }
        break;
      case "results":
        if (
          isSame(s.names, names) && s.values.length === names.length
        ) break;
        faults.push(
          `it has ${s.values.length} values for results of ${names.length} matrices`,
        );
    }
  }
  if (sizes.some((size) => size % MATRIX_SIZE !== 0)) {
    faults.push(`its matrices are not multiples of ${MATRIX_SIZE}: ${sizes}`);
  }
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
