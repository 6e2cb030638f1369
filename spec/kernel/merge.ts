/** Merges several kernels into one: workgroups along y are those of the first, then those of the next. */

import { add, div, id, if_, load, lt, mul, select, sub, u32 } from "./build.ts";
import { isSame } from "../same.ts";
import { GRID_LIMIT } from "./make.ts";
import { replaceIn } from "./replace.ts";
import type { Binding, Expr, Kernel, SharedArray, Stmt } from "./tree.ts";
import { addLoadWidth, loadWidths, withOneWidth } from "./vectors.ts";
import type { Size } from "../size.ts";

/** A kernel and its launch. */
export interface Launched {
  readonly kernel: Kernel;
  /** Binding name -> buffer. */
  readonly bindings: { readonly [binding: string]: string };
  readonly workgroups: readonly [Size, Size, Size];
}

/** A merged launch. */
export interface Merged extends Omit<Launched, "kernel"> {
  readonly kernel: Omit<Kernel, "body">;
  /** JSON data: all that the statements depend on besides those of the parts. */
  readonly frame: unknown;
  /** Its statements, created on demand, because another part may be added, and layers repeat. */
  body(): readonly Stmt[];
}

/** Location of dynamic lengths for a kernel. */
export interface LengthsBinding {
  readonly buffer: string;
  /** The dynamic axes, in the order of the buffer. */
  readonly counts: readonly string[];
  /** Whether grids may have different numbers of elements, which leaves workgroups idle. Default: false. */
  readonly uneven?: boolean;
}

/**
 * Merges independent kernels, each in its own workgroups. Undefined if their grids, workgroups or bindings are
 * incompatible.
 */
export function mergeKernels(
  parts: readonly Launched[],
  lengths: LengthsBinding,
): Merged | undefined {
  const { workgroupSize } = parts[0]!.kernel;
  const heights = parts.map(({ workgroups: [, y, z] }) =>
    z === 1 && typeof y === "number" ? y : undefined
  );
  if (
    heights.includes(undefined) ||
    parts.some(({ kernel }) => kernel.workgroupSize !== workgroupSize)
  ) return undefined;
  const widest = parts.map(({ workgroups: [x] }) => x)
    .reduce<Size | undefined>((a, b) => largerOf(a, b, lengths), 0);
  if (widest === undefined) return undefined;
  /** The bindings by buffer. */
  const bindings = new Map<string, Binding>();
  const shared = new Map<string, SharedArray>();
  const widths = new Map<string, number>();
  const lengthsName = () => {
    const name = lengthsIn(bindings, lengths);
    addLoadWidth(widths, name, 1);
    return name;
  };
  const bodies: (() => Stmt[])[] = [];
  const frame: unknown[] = [];
  let from = 0;
  for (const [i, part] of parts.entries()) {
    const names = addBindings(bindings, part);
    if (!names) return undefined;
    for (const [binding, width] of loadWidths(part.kernel.body)) {
      addLoadWidth(widths, names.get(binding)!, width);
    }
    const arrays = addShared(shared, part.kernel);
    const [x] = part.workgroups;
    const start = from;
    const body = () =>
      replaceIn(part.kernel.body, {
        binding: (name) => names.get(name)!,
        shared: (name) => arrays.get(name)!,
        id: (name) =>
          name !== "group.y" || start === 0
            ? undefined
            : heights[i] === 1
            ? u32(0)
            : sub(id("group.y"), u32(start)),
      });
    from += heights[i]!;
    const isWidest = isSame(x, widest);
    const end = isWidest ? undefined : inKernel(x, lengths, lengthsName);
    if (!isWidest && !end) return undefined;
    bodies.push(end ? () => [if_(lt(id("group.x"), end), body())] : body);
    frame.push([[...names], heights[i], end]);
  }
  if (from > GRID_LIMIT) return undefined;
  const names = parts.map(({ kernel }) => kernel.name);
  return {
    kernel: {
      name: [...new Set(names)].join("_and_"),
      workgroupSize,
      bindings: [...bindings.values()],
      shared: [...shared.values()],
    },
    frame,
    body: () => {
      let end = from;
      const body = bodies.map((body) => body()).reduceRight(
        (others, body, i) => {
          end -= heights[i + 1]!;
          return [if_(lt(id("group.y"), u32(end)), body, others)];
        },
      );
      return withOneWidth(body, widths);
    },
    bindings: Object.fromEntries(
      [...bindings].map(([buffer, { name }]) => [name, buffer]),
    ),
    workgroups: [widest, from, 1],
  };
}

/**
 * The parts of a merged kernel, each with the number along y at which its workgroups end; for any other kernel, one
 * part without an end. Printers for CPUs emit one function per part, because compilers optimize large functions less
 * and compile them in superlinear time.
 */
export function mergedParts(
  kernel: Kernel,
): readonly { readonly end: number | undefined; readonly kernel: Kernel }[] {
  const [first, ...rest] = kernel.body;
  if (first?.op !== "if" || rest.length > 0 || !first.else) {
    return [{ end: undefined, kernel }];
  }
  const { condition, then } = first;
  if (
    condition.op !== "binary" || condition.fn !== "lt" ||
    condition.a.op !== "id" || condition.a.name !== "group.y" ||
    condition.b.op !== "const"
  ) return [{ end: undefined, kernel }];
  return [
    { end: Number(condition.b.value), kernel: { ...kernel, body: then } },
    ...mergedParts({ ...kernel, body: first.else }),
  ];
}

/**
 * Adds the bindings of a part. Returns their names in the merged kernel. Undefined if two parts use a buffer with
 * different types.
 */
function addBindings(
  all: Map<string, Binding>,
  { kernel, bindings }: Launched,
): Map<string, string> | undefined {
  const names = new Map<string, string>();
  for (const binding of kernel.bindings) {
    const buffer = bindings[binding.name]!;
    const known = all.get(buffer);
    if (
      known &&
      (known.type !== binding.type || known.access !== "read" ||
        binding.access !== "read")
    ) return undefined;
    const name = known?.name ??
      `${binding.access === "read" ? "x" : "y"}${all.size}`;
    if (!known) all.set(buffer, { ...binding, name });
    names.set(binding.name, name);
  }
  return names;
}

/** A workgroup executes only one part, so parts share memory: arrays of one type, as long as the longest. */
function addShared(
  all: Map<string, SharedArray>,
  { shared }: Kernel,
): Map<string, string> {
  const numbers = new Map<string, number>();
  return new Map(shared.map(({ name, type, length }) => {
    const number = (numbers.get(type) ?? 0) + 1;
    numbers.set(type, number);
    const merged = `shared_${type}${number}`;
    const known = all.get(merged)?.length ?? 0;
    all.set(merged, { name: merged, type, length: Math.max(known, length) });
    return [name, merged];
  }));
}

/** The name of the binding of lengths. */
function lengthsIn(
  all: Map<string, Binding>,
  { buffer }: LengthsBinding,
): string {
  const known = all.get(buffer);
  if (known) return known.name;
  const name = `x${all.size}`;
  all.set(buffer, { name, type: "u32", access: "read" });
  return name;
}

/** A size as a kernel computes it. Undefined if only the host knows it. */
function inKernel(
  size: Size,
  { counts }: Pick<LengthsBinding, "counts">,
  lengths: () => string,
): Expr | undefined {
  if (typeof size === "number") return u32(size);
  if ("count" in size) {
    if (size.over) return undefined;
    return load(lengths(), u32(counts.indexOf(size.count)), "u32");
  }
  const part = (s: Size) => inKernel(s, { counts }, lengths);
  if ("ceilDiv" in size) {
    const [dividend, by] = size.ceilDiv;
    const value = part(dividend);
    return value && div(add(value, u32(by - 1)), u32(by));
  }
  const conditional = "upTo" in size
    ? size.upTo
    : "above" in size
    ? size.above
    : undefined;
  if (conditional) {
    const [by, then] = [part(conditional[0]), part(conditional[2])];
    if (!by || !then) return undefined;
    const isAbove = lt(u32(conditional[1]), by);
    return "above" in size
      ? select(isAbove, then, u32(0))
      : select(isAbove, u32(0), then);
  }
  if (!("mul" in size)) return undefined;
  const factors = size.mul.map(part);
  return factors.reduce<Expr | undefined>(
    (product, factor) => product && factor && mul(product, factor),
    u32(1),
  );
}

/** The larger of two sizes, if it is larger for all lengths of axes. */
function largerOf(
  a: Size | undefined,
  b: Size | undefined,
  lengths: Pick<LengthsBinding, "uneven">,
): Size | undefined {
  if (a === undefined || b === undefined) return undefined;
  if (isSame(a, b) || b === 0) return a;
  if (a === 0) return b;
  if (isAbove(a) && isAbove(b)) {
    const [[by, limit, then], [otherBy, otherLimit, other]] = [
      a.above,
      b.above,
    ];
    if (limit !== otherLimit || !isSame(by, otherBy)) return undefined;
    const larger = largerOf(then, other, lengths);
    return larger && (larger === then ? a : b);
  }
  if (isQuotient(a) && isQuotient(b)) {
    const [[dividend, by], [otherDividend, otherBy]] = [a.ceilDiv, b.ceilDiv];
    const larger = lengths.uneven && by === otherBy
      ? largerOf(dividend, otherDividend, lengths)
      : undefined;
    if (larger) return larger === dividend ? a : b;
    if (isSame(dividend, otherDividend)) return by <= otherBy ? a : b;
  }
  const [[restA, timesA], [restB, timesB]] = [factored(a), factored(b)];
  if (!isSame(restA, restB)) return undefined;
  return timesA >= timesB ? a : b;
}

function isAbove(
  size: Size,
): size is Extract<Size, { readonly above: unknown }> {
  return typeof size !== "number" && "above" in size;
}

function isQuotient(
  size: Size,
): size is Extract<Size, { readonly ceilDiv: unknown }> {
  return typeof size !== "number" && "ceilDiv" in size;
}

/** The dynamic factors of a product, and the constant one. */
function factored(size: Size): [rest: Size, times: number] {
  if (typeof size === "number") return [{ mul: [] }, size];
  if (!("mul" in size)) return [{ mul: [size] }, 1];
  const numbers = size.mul.filter((s) => typeof s === "number");
  const rest = size.mul.filter((s) => typeof s !== "number");
  return [{ mul: rest }, numbers.reduce((a, b) => a * b, 1)];
}
