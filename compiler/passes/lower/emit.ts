/** Expressions: the value of a node at an index, with elementwise nodes inlined down to loads of stored values. */

import { invariant, ModelError } from "../../../spec/errors.ts";
import {
  add,
  binary,
  bitcast,
  call,
  convert,
  div,
  f32,
  load,
  loadStored,
  lt,
  mul,
  rem,
  select,
  store,
  sub,
  u32,
} from "../../../spec/kernel/build.ts";
import { cachedJson } from "../../../spec/kernel/exact_json.ts";
import { exprIn } from "../../../spec/kernel/text/resolve.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";
import { mapOperands } from "../../../spec/kernel/walk.ts";
import type {
  Node,
  NodeOf,
  Primitive,
  ScalarFunction,
} from "../../graph/graph.ts";
import { type At, atWith, flatIndex, ROW } from "./indices.ts";
import { lengthOf, productOf, type Storage } from "./context.ts";
import type { BucketLayout } from "./lowering.ts";
import { heldIndex, heldStart } from "./shard_offset.ts";
import { packedElementAt } from "./packed_element.ts";
import type { KernelScope } from "./scope.ts";

/** Values that the current kernel has already computed, or computes at an index of its row. */
export type Known = ReadonlyMap<Node, Expr | ((at: At) => Expr)>;

const NOTHING_KNOWN: Known = new Map();

/** The value of `node` at `at`, rounded to its dtype. */
export function emitValue(
  scope: KernelScope,
  node: Node,
  at: At,
  known: Known = NOTHING_KNOWN,
): Expr {
  const value = known.get(node);
  if (value) return typeof value === "function" ? value(at) : value;
  const storage = scope.lowering.values.storages.get(node);
  if (storage) return loadFrom(scope, storage, at);
  return computeValue(scope, node, at, known);
}

/** The value of an inline node from its inputs, even if it is stored. */
export function computeValue(
  scope: KernelScope,
  node: Node,
  at: At,
  known: Known = NOTHING_KNOWN,
): Expr {
  const rule = INLINE[node.primitive] as InlineRule<Primitive> | undefined;
  invariant(rule, `'${node.primitive}' is neither stored nor inline`);
  return finish(node, rule({ scope, node, at, known }));
}

/** Rounds to f16 if the node's dtype is f16, and converts to its type. */
export function finish(node: Node, value: Expr): Expr {
  if (node.dtype === "f16") return call("roundF16", convert("f32", value));
  return convert(node.dtype, value);
}

/** The element of a stored value at an index. */
export function loadFrom(
  scope: KernelScope,
  storage: Storage,
  at: At,
): Expr {
  if (storage.packed) return loadPacked(scope, storage, storage.packed, at);
  const index = indexIn(scope, storage, at);
  return loadStored(scope.read(storage.buffer), storage.dtype, index);
}

/** The decoded element of a packed parameter. */
function loadPacked(
  scope: KernelScope,
  { buffer, axes }: Storage,
  { stored, along, ...others }: NonNullable<Storage["packed"]>,
  at: At,
): Expr {
  const { placed } = scope.lowering;
  const k = scope.bindValue(at.get(along));
  // The axes inside of `along` are those of adjacent words.
  const inside = axes.slice(axes.indexOf(along) + 1);
  return packedElementAt({
    stored,
    buffers: { codes: buffer, ...others },
    k,
    stride: inside.reduce((n, axis) => n * placed.axes[axis]!.size, 1),
    groupAt: (per) =>
      scope.bindValue(axes.reduce<Expr>((index, axis) => {
        const { size } = placed.axes[axis]!;
        if (axis !== along) return add(mul(index, u32(size)), at.get(axis));
        return per === undefined
          ? index
          : add(mul(index, u32(size / per)), div(k, u32(per)));
      }, u32(0))),
    row: () =>
      flatIndex(scope, axes.filter((axis) => axis !== along), { get: at.get }),
    read: (name) => scope.read(name),
    bind: (value) => scope.bindValue(value),
    resolve: (text) => exprIn(scope.bindings, text),
  });
}

/** Stores the value of `node` at an index. */
export function storeTo(
  scope: KernelScope,
  storage: Storage,
  at: At,
  value: Expr,
): Stmt {
  return store(
    scope.write(storage.buffer),
    indexIn(scope, storage, at),
    value,
  );
}

/** The offset of an index in a stored value's buffer. */
export function indexIn(
  scope: KernelScope,
  storage: Storage,
  at: At,
): Expr {
  const { axes, rowStride, bucket } = storage;
  if (storage.rows) {
    return add(
      mul(rowIn(scope, storage, at), productOf(scope, axes)),
      flatIndex(scope, axes, at),
    );
  }
  if (bucket) return indexInBucket(scope, storage, bucket, at);
  if (rowStride === undefined) return flatIndex(scope, axes, at);
  const row = flatIndex(scope, axes.slice(0, -1), { get: at.get });
  return add(mul(row, u32(rowStride)), at.get(axes.at(-1)!));
}

/** The offset of an index of a value in a bucket. */
function indexInBucket(
  scope: KernelScope,
  { axes }: Storage,
  { offset, blocks }: BucketLayout,
  at: At,
): Expr {
  const { placed } = scope.lowering;
  const item = blocks && scope.bindValue(at.get(blocks.axis));
  const groupRank = blocks && scope.bindValue(div(item!, u32(blocks.each)));
  const index = axes.reduce<Expr>((index, axis) => {
    if (axis === blocks?.axis) {
      const local = sub(item!, mul(groupRank!, u32(blocks.each)));
      return add(mul(index, u32(blocks.each)), local);
    }
    return add(mul(index, u32(placed.axes[axis]!.size)), at.get(axis));
  }, u32(0));
  const start = blocks
    ? add(mul(groupRank!, u32(blocks.stride)), u32(offset))
    : u32(offset);
  return add(start, index);
}

/** The memory row of a dispatched value at an index. */
export function rowIn(scope: KernelScope, storage: Storage, at: At): Expr {
  const row = at.get(ROW);
  const through = storage.rows!.through;
  return through ? load(scope.read(through), row, "u32") : row;
}

/** Substitutes arguments into a scalar function. Arithmetic has the type of its operands, so i32 tensors stay exact. */
function applyScalar(
  scope: KernelScope,
  fn: ScalarFunction,
  args: readonly Expr[],
): Expr {
  const locals = new Map<string, Expr>(
    args.map((arg, i) => [`p${i}`, scope.bindValue(arg)]),
  );
  for (const { name, value } of fn.lets) {
    locals.set(name, scope.bindValue(substitute(value, locals)));
  }
  return substitute(fn.result, locals);
}

function substitute(expr: Expr, locals: ReadonlyMap<string, Expr>): Expr {
  const e = mapOperands(expr, (operand) => substitute(operand, locals));
  switch (e.op) {
    case "local":
      return locals.get(e.name) ?? e;
    case "binary":
      return binary(e.fn, ...unify(e.a, e.b));
    case "unary":
      return { ...e, type: e.a.type };
    case "call":
      return { ...e, args: e.args.map((arg) => convert("f32", arg)) };
    case "select":
      return select(e.condition, ...unify(e.a, e.b));
    case "convert":
      return convert(e.type, e.a);
    default:
      return e;
  }
}

/** Converts a constant to the type of the other operand. */
function unify(a: Expr, b: Expr): [Expr, Expr] {
  if (a.type === b.type) return [a, b];
  if (
    a.op === "const" && typeof a.value === "number" && Number.isInteger(a.value)
  ) return [{ ...a, type: b.type }, b];
  if (
    b.op === "const" && typeof b.value === "number" && Number.isInteger(b.value)
  ) return [a, { ...b, type: a.type }];
  return [convert("f32", a), convert("f32", b)];
}

interface Inline<P extends Primitive> {
  readonly scope: KernelScope;
  readonly node: NodeOf<P>;
  readonly at: At;
  readonly known: Known;
}
type InlineRule<P extends Primitive> = (inline: Inline<P>) => Expr;

/** The value of an operand at the index of the result, or at another one. */
function input<P extends Primitive>(
  { scope, node, at, known }: Inline<P>,
  { i = 0, there = at }: { readonly i?: number; readonly there?: At } = {},
): Expr {
  return emitValue(scope, node.inputs[i]!, there, known);
}

/** The value of an operand at another index along one axis. */
function inputWith<P extends Primitive>(
  inline: Inline<P>,
  axis: string,
  index: () => Expr,
  i = 0,
): Expr {
  return input(inline, { i, there: atWith(inline.at, axis, index) });
}

/** Nodes that are expressions over their inputs. */
const INLINE: { readonly [P in Primitive]?: InlineRule<P> } = {
  map(inline) {
    const { scope, node } = inline;
    const fn = node.params.lambda.lowered ??
      scope.lowering.model.scalars.get(node.params.lambda);
    invariant(fn, "a lambda was not lowered");
    return applyScalar(
      scope,
      fn,
      node.inputs.map((_, i) => input(inline, { i })),
    );
  },
  cast: (inline) => input(inline),
  transpose: (inline) => input(inline),
  rename(inline) {
    const { from, to } = inline.node.params;
    return inputWith(inline, from, () => inline.at.get(to));
  },
  split(inline) {
    const { axis, into } = inline.node.params;
    const { get } = inline.at;
    return inputWith(
      inline,
      axis,
      () => flatIndex(inline.scope, into, { get }),
    );
  },
  merge(inline) {
    const { axes, to } = inline.node.params;
    const { scope, at } = inline;
    const get = (axis: string) => {
      const i = axes.indexOf(axis);
      if (i < 0) return at.get(axis);
      const outer = div(at.get(to), productOf(scope, axes.slice(i + 1)));
      return i === 0 ? outer : rem(outer, lengthOf(scope, axis));
    };
    return input(inline, { there: { get } });
  },
  slice(inline) {
    const { axis, start, step, to } = inline.node.params;
    return inputWith(
      inline,
      axis,
      () => add(mul(inline.at.get(to), u32(step)), u32(start)),
    );
  },
  dilate(inline) {
    const { scope, node, at } = inline;
    const { axis: part, start, step, to } = node.params;
    const position = scope.bindValue(at.get(to));
    const first = select(
      lt(position, u32(start)),
      u32(0),
      sub(position, u32(start)),
    );
    const index = scope.bindValue(div(first, u32(step)));
    // Clamps the index, because nothing may be stored there.
    const inside = binary("min", index, sub(lengthOf(scope, part), u32(1)));
    const value = inputWith(inline, part, () => inside);
    const there = add(mul(inside, u32(step)), u32(start));
    return select(binary("eq", there, position), value, f32(0));
  },
  concat(inline) {
    const { scope, node, at } = inline;
    const { axes, to } = node.params;
    const position = scope.bindValue(at.get(to));
    let end: Expr = u32(0);
    const parts = axes.map((axis, i) => {
      const start = end;
      const length = lengthOf(scope, axis);
      end = add(end, length);
      // Clamps the index, because the other operand may be selected.
      const inside = select(lt(position, start), u32(0), sub(position, start));
      const clamped = binary("min", inside, sub(length, u32(1)));
      return { end, value: inputWith(inline, axis, () => clamped, i) };
    });
    return parts.reduceRight<Expr | undefined>(
      (later, { end, value }) =>
        later ? select(lt(position, end), value, later) : value,
      undefined,
    )!;
  },
  embedding(inline) {
    const { scope, node } = inline;
    const { over: axis } = node.params;
    const { table, of, size } = scope.lowering.placed.axes[axis]!;
    const id = convert("u32", input(inline, { i: 1 }));
    const row = (index: Expr) => inputWith(inline, axis, () => index);
    if (!table) return row(id);
    // Rows of other ranks add -0, the neutral element of a sum.
    const first = heldStart(scope, { from: of, to: axis });
    const index = scope.bindValue(sub(id, first));
    const here = lt(index, u32(size));
    const nothing = bitcast("f32", u32(0x80000000));
    return select(
      here,
      row(scope.bindValue(select(here, index, u32(0)))),
      nothing,
    );
  },
  rope(inline) {
    const { scope, node, at } = inline;
    const { over, interleaved } = node.params;
    const half = node.params.inverseFrequencies.length;
    const index = scope.bindValue(at.get(over));
    const partial = 2 * half < scope.lowering.placed.axes[over]!.size
      ? scope.bindValue(lt(index, u32(2 * half)))
      : undefined;
    // An element that is not rotated reads the first row of the table and its own pair.
    const j = partial ? scope.bindValue(select(partial, index, u32(0))) : index;
    const pair = interleaved ? div(j, u32(2)) : rem(j, u32(half));
    const second = interleaved
      ? binary("eq", rem(j, u32(2)), u32(1))
      : binary("ge", j, u32(half));
    const step = interleaved ? 1 : half;
    const partner = scope.bindValue(
      select(second, sub(j, u32(step)), add(j, u32(step))),
    );
    const x = input(inline);
    const table = scope.lowering.values.ropeTables.get(ropeKey(node))!;
    const row = mul(convert("u32", input(inline, { i: 1 })), u32(half * 2));
    const binding = scope.read(table);
    const cos = load(binding, add(row, pair));
    const sin = load(binding, add(row, u32(half), pair));
    const other = scope.bindValue(inputWith(inline, over, () => partner));
    // (x0 cos - x1 sin, x1 cos + x0 sin)
    const signed = select(second, other, {
      op: "unary",
      type: "f32",
      fn: "neg",
      a: other,
    });
    const rotated = call("fma", signed, sin, mul(x, cos));
    return partial ? select(partial, rotated, x) : rotated;
  },
  allSlice(inline) {
    const { scope, node, at } = inline;
    const { axis: from, to } = node.params;
    const there = scope.bindValue(heldIndex(scope, { from, to }, at.get(to)));
    return inputWith(inline, from, () => there);
  },
  tupleElement() {
    throw new ModelError(
      "Cannot read a part of a routing: it has no buffer. This is a bug",
    );
  },
};

/** Key of a rotary table. Rope nodes with equal keys share one. */
export function ropeKey(node: NodeOf<"rope">): string {
  const { inverseFrequencies, scale, positions } = node.params;
  return `${cachedJson(inverseFrequencies)} ${scale} ${positions}`;
}
