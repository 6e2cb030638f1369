/** Accesses of adjacent elements of workgroup memory, which compilers combine. */

import { isSame } from "../../spec/same.ts";
import type { Expr, MatrixStmt, Stmt } from "../../spec/kernel/tree.ts";

/** A store in workgroup memory. */
export type SharedStore = Extract<Stmt, { readonly op: "sharedStore" }>;

/** A variable with an element of workgroup memory. */
export type SharedLoad = Extract<Stmt, { readonly op: "let" }> & {
  readonly value: Extract<Expr, { readonly op: "shared" }>;
};

/** An element of workgroup memory. */
interface Access {
  readonly array: string;
  readonly index: Expr;
}

/** An index, and the constant that it adds. */
export function splitIndex(index: Expr): readonly [base: Expr, offset: number] {
  const { op } = index;
  return op === "binary" && index.fn === "add" && index.b.op === "const"
    ? [index.a, Number(index.b.value)]
    : [index, 0];
}

/**
 * The stores from statement `first` on in adjacent elements of workgroup memory, 16 bytes at most, as many as a power
 * of two: LLVM and Mesa combine them, if the first is aligned (LoadStoreVectorizer, nir_opt_load_store_vectorize).
 * Empty: it is another statement.
 */
export function adjacentStores(
  body: readonly MatrixStmt[],
  first: number,
  halves: ReadonlySet<string> | undefined,
): readonly SharedStore[] {
  const store = body[first]!;
  if (store.op !== "sharedStore") return [];
  const most = halves?.has(store.array) ? 8 : 4;
  return adjacent(
    body.slice(first, first + most),
    (s) => s.op === "sharedStore" ? s : undefined,
  ) as SharedStore[];
}

/**
 * The variables from statement `first` on with adjacent elements of workgroup memory, which are loaded as stores are.
 */
export function adjacentLoads(
  body: readonly MatrixStmt[],
  first: number,
): readonly SharedLoad[] {
  const loaded = (s: MatrixStmt) =>
    s.op === "let" && s.value.op === "shared" ? s.value : undefined;
  if (!loaded(body[first]!)) return [];
  return adjacent(body.slice(first, first + 4), loaded) as SharedLoad[];
}

/** The first statements that access adjacent elements of an array, as many as a power of two. */
function adjacent(
  statements: readonly MatrixStmt[],
  accessOf: (s: MatrixStmt) => Access | undefined,
): readonly MatrixStmt[] {
  const { array, index } = accessOf(statements[0]!)!;
  const [base, offset] = splitIndex(index);
  const end = statements.findIndex((s, n) => {
    const access = accessOf(s);
    if (access?.array !== array) return true;
    const at = splitIndex(access.index);
    return at[1] !== offset + n || !isSame(at[0], base);
  });
  const length = end < 0 ? statements.length : end;
  return statements.slice(0, 2 ** Math.floor(Math.log2(length)));
}
