/**
 * The kernel tree: a compute kernel in scalars, loops and barriers. Printers convert it to WGSL (`wgsl.ts`) or other
 * targets; no other code knows those languages. A kernel runs in workgroups of `workgroupSize` invocations in one
 * dimension; groups are numbered in three.
 */

import type { Count, Identifier, Short } from "../values.ts";

/** Types of values in a kernel. */
export type ScalarType = "f32" | "i32" | "u32" | "bool";

/** `group.x/y/z` number the workgroup, `local` the invocation in it; all are u32. */
export type IdName = "group.x" | "group.y" | "group.z" | "local";

/** Negation of a number, or of a bool. */
export type UnaryOp = "neg" | "not";

/**
 * Comparisons return bool; `land`, `lor` require bools; shifts have a u32 on the right; the others have the type of
 * their operands.
 */
export type BinaryOp =
  | "add"
  | "sub"
  | "mul"
  | "div"
  | "rem"
  | "min"
  | "max"
  | "and"
  | "or"
  | "xor"
  | "shl"
  | "shr"
  | "eq"
  | "ne"
  | "lt"
  | "le"
  | "gt"
  | "ge"
  | "land"
  | "lor";

/**
 * Functions, most of them of f32. `fma(a, b, c)` is one node, a*b+c. `roundF16` rounds to f16 precision.
 * `unpackF16Lo/Hi` take a u32. `dot4I8` is the dot product of the four i8 in two u32, as an i32; `dot4U8I8` has four u8
 * in the first. `lookup16(indices, a, b, c, d)` replaces each byte of a u32 by a byte of a table of 16, selected by its
 * lower half; the table is four u32 constants.
 */
export type CallName =
  | "fma"
  | "exp"
  | "log"
  | "sqrt"
  | "rsqrt"
  | "sin"
  | "cos"
  | "tanh"
  | "abs"
  | "floor"
  | "ceil"
  | "trunc"
  | "round"
  | "sign"
  | "pow"
  | "roundF16"
  | "unpackF16Lo"
  | "unpackF16Hi"
  | "dot4I8"
  | "dot4U8I8"
  | "lookup16";

/** A value. Every node has a type. */
export type Expr =
  | {
    readonly op: "const";
    readonly type: ScalarType;
    readonly value: number | boolean;
  }
  | {
    readonly op: "local";
    readonly type: ScalarType;
    readonly name: Identifier;
  }
  | { readonly op: "id"; readonly type: "u32"; readonly name: IdName }
  | {
    readonly op: "load";
    readonly type: ScalarType;
    readonly binding: Identifier;
    readonly index: Expr;
    /** `index` is that of a byte: four bytes of words, from there on. */
    readonly bytes?: true;
  }
  | {
    readonly op: "shared";
    readonly type: ScalarType;
    readonly array: Identifier;
    readonly index: Expr;
  }
  | {
    readonly op: "unary";
    readonly type: ScalarType;
    readonly fn: UnaryOp;
    readonly a: Expr;
  }
  | {
    readonly op: "binary";
    readonly type: ScalarType;
    readonly fn: BinaryOp;
    readonly a: Expr;
    readonly b: Expr;
  }
  | {
    readonly op: "call";
    readonly type: ScalarType;
    readonly fn: CallName;
    readonly args: readonly Expr[];
  }
  | {
    readonly op: "select";
    readonly type: ScalarType;
    readonly condition: Expr;
    readonly a: Expr;
    readonly b: Expr;
  }
  | { readonly op: "convert"; readonly type: ScalarType; readonly a: Expr }
  | { readonly op: "bitcast"; readonly type: ScalarType; readonly a: Expr };

/**
 * Binds two or four names to consecutive elements of a read-only binding, starting at `index` times their number: a
 * vector load, if the target has one. All loads from one binding then have the same width.
 */
export interface LoadsStmt {
  readonly op: "loads";
  /**
   * @minItems 2
   * @maxItems 4
   */
  readonly names: readonly Identifier[];
  readonly type: "f32" | "i32" | "u32";
  readonly binding: Identifier;
  readonly index: Expr;
}

/** A statement without a body. `let` binds once, `var` may be `set`. */
export type SimpleStmt =
  | { readonly op: "let"; readonly name: Identifier; readonly value: Expr }
  | { readonly op: "var"; readonly name: Identifier; readonly value: Expr }
  | LoadsStmt
  | { readonly op: "set"; readonly name: Identifier; readonly value: Expr }
  | {
    readonly op: "store";
    readonly binding: Identifier;
    readonly index: Expr;
    readonly value: Expr;
  }
  | {
    readonly op: "sharedStore";
    readonly array: Identifier;
    readonly index: Expr;
    readonly value: Expr;
  }
  | { readonly op: "barrier" };

/**
 * A loop that counts a u32 from `from` below `to` by `step`, a constant of at least 1, and ends before its counter
 * overflows 2^32 (`endOf` in build.ts). Its body must not change `to`.
 */
export interface ForStmt<S> {
  readonly op: "for";
  readonly name: Identifier;
  readonly from: Expr;
  readonly to: Expr;
  readonly step: Expr;
  readonly body: readonly S[];
}

/** A condition. */
export interface IfStmt<S> {
  readonly op: "if";
  readonly condition: Expr;
  readonly then: readonly S[];
  readonly else?: readonly S[];
}

/** A statement. */
export type Stmt = SimpleStmt | ForStmt<Stmt> | IfStmt<Stmt>;

/**
 * A statement of a kernel's matrix form. The statements on matrices are expanded by `expandMatrices` (`matrices.ts`),
 * and printed as subgroup matrices on devices that support them.
 */
export type MatrixStmt =
  | SimpleStmt
  | ForStmt<MatrixStmt>
  | IfStmt<MatrixStmt>
  | MatrixTile
  | MultiplyStmt
  | MatrixStoreStmt
  | ScaleRowsStmt
  | ResultsStmt;

/**
 * Declares f32 matrices of `rows` x `columns` zeros, distributed over the invocations of the workgroup. All tiles of a
 * form have equally many rows; tiles in different scopes may have equal names if they have equal sizes.
 */
export interface MatrixTile {
  readonly op: "matrices";
  readonly names: Short<Identifier>;
  readonly rows: Count;
  readonly columns: Count;
}

/**
 * Waits for the workgroup and adds the products of arrays in workgroup memory to matrices of a tile:
 * `name += left [rows, depth] * right [depth, columns]`. The arrays contain numbers that f16 can represent. The stores
 * of an array precede the product in its block, or in blocks inside of that.
 */
export interface MultiplyStmt {
  readonly op: "multiply";
  readonly left: Identifier;
  readonly depth: Count;
  /** Elements from row to row of an array, multiples of 8. Default: no element is between rows. */
  readonly leftStride?: Count;
  readonly rightStride?: Count;
  /**
   * Right operands are [columns, depth]. In the expansion, an array of them is [depth, columns of all], without
   * strides.
   */
  readonly transposed?: true;
  readonly products: Short<{
    readonly name: Identifier;
    readonly right: Identifier;
    /** Index of the first element of a transposed operand: a multiple of the stride. Default: 0. */
    readonly from?: Count;
  }>;
}

/**
 * Stores a matrix of a tile in workgroup memory, `array[row * stride + column]`, without waiting for the workgroup.
 * `stride` is a multiple of 4.
 */
export interface MatrixStoreStmt {
  readonly op: "storeMatrix";
  readonly name: Identifier;
  readonly array: Identifier;
  readonly stride: Count;
}

/**
 * Waits for the workgroup and multiplies the elements of each row of matrices of a tile by `factors[row]`, f32 in
 * workgroup memory. Subgroups skip it if all factors are 1.
 */
export interface ScaleRowsStmt {
  readonly op: "scaleRows";
  readonly names: Short<Identifier>;
  readonly factors: Identifier;
}

/**
 * Waits for the workgroup and executes `body` for each element of a tile whose row and column are below their ends:
 * with its row and column, counted from `from`, and its value in each matrix of the tile, `values`.
 */
export interface ResultsStmt {
  readonly op: "results";
  /** The matrices of the tile. */
  readonly names: Short<Identifier>;
  readonly row: TileIndex;
  readonly column: TileIndex;
  readonly values: Short<Identifier>;
  readonly body: readonly Stmt[];
}

/** The index of an element of a tile along one dimension: `from` plus its index in the tile, if below `end`. */
export interface TileIndex {
  readonly name: Identifier;
  readonly from: Expr;
  readonly end: Expr;
}

/**
 * A storage buffer that a kernel accesses as an array of one scalar type. Packed 16-bit floats are accessed as u32
 * pairs.
 */
export interface Binding {
  readonly name: Identifier;
  readonly type: "f32" | "i32" | "u32";
  readonly access: "read" | "write" | "read_write";
  /**
   * access read, but declared `read_write`, because a launch binds it to an allocation that it also writes. In one
   * dispatch, WebGPU allows a buffer as read-only or as writable storage, not both.
   */
  readonly writable?: true;
}

/** Whether a binding is declared as read-only storage. */
export function isReadOnly({ access, writable }: Binding): boolean {
  return access === "read" && !writable;
}

/** Workgroup memory. */
export interface SharedArray {
  readonly name: Identifier;
  readonly type: "f32" | "i32" | "u32";
  readonly length: Count;
}

/**
 * A kernel. Barriers must be reached by every invocation of a workgroup: at the top level, or in `for` and `if` whose
 * bounds and conditions are uniform over the workgroup (composed of constants, group ids and loads at uniform indices).
 */
export interface Kernel {
  readonly name: Identifier;
  readonly workgroupSize: Count;
  readonly bindings: Short<Binding>;
  readonly shared: Short<SharedArray>;
  readonly body: readonly Stmt[];
  /**
   * The same kernel with statements on matrices, for devices with subgroup matrices: `body` is its expansion. Operands
   * of `multiply` are then arrays of f16.
   */
  readonly matrixForm?: readonly MatrixStmt[];
}
