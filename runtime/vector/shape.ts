/**
 * Variation of a value over the lanes of a vector and over a workgroup. Lanes are consecutive invocations, so most
 * index arithmetic is `base + lane * stride` with a scalar base; this analysis finds uniform and contiguous accesses.
 */

import type { Expr } from "../../spec/kernel/tree.ts";

/** Variation of a value. */
export interface Shape {
  /**
   * The value of lane l is base + l * stride. 0 is uniform, null is arbitrary. Only integers have strides other than 0.
   */
  readonly stride: number | null;
  /** A power of two that divides the base (lane 0's value). */
  readonly align: number;
  /** Whether it is uniform in the workgroup. */
  readonly group: boolean;
  /** The value, if constant. */
  readonly value?: number;
}

/** Facts about a variable. */
export interface Variable {
  readonly name: string;
  readonly type: Expr["type"];
  readonly kind: "let" | "var" | "for";
  /** The value of a `let`. */
  readonly definition?: Expr;
  shape: Shape;
  /**
   * Each vector of a workgroup has its own value in memory; a local has the current vector's value only where it is
   * read.
   */
  inMemory?: true;
}

const MAX_ALIGN = 2 ** 30;
/** An arbitrarily varying value. */
export const VARYING: Shape = { stride: null, align: 1, group: false };

function lowBit(value: number): number {
  if (value === 0) return MAX_ALIGN;
  return Math.min(MAX_ALIGN, (value & -value) >>> 0);
}

/** The shape after two branches with the same base. */
export function join(a: Shape, b: Shape): Shape {
  return {
    stride: a.stride === b.stride ? a.stride : null,
    align: Math.min(a.align, b.align),
    group: a.group && b.group,
    ...(a.value !== undefined && a.value === b.value ? { value: a.value } : {}),
  };
}

/** Whether two shapes are equal. */
export function sameShape(a: Shape, b: Shape): boolean {
  return a.stride === b.stride && a.align === b.align && a.group === b.group &&
    a.value === b.value;
}

/** Shapes of expressions, given those of the variables. */
export class Shapes {
  readonly variables: Map<string, Variable>;
  /** Lanes of a vector: a power of two. */
  readonly lanes: number;
  readonly #local: Shape;
  #memo = new Map<Expr, Shape>();

  /** `lanes` divides `workgroupSize`; it is 1 for kernels whose workgroup size is not a multiple of the vector size. */
  constructor(
    variables: Map<string, Variable>,
    options: { readonly lanes: number; readonly workgroupSize: number },
  ) {
    this.variables = variables;
    const { lanes, workgroupSize } = options;
    this.lanes = lanes;
    this.#local = workgroupSize === 1
      ? { stride: 0, align: MAX_ALIGN, group: true, value: 0 }
      : lanes === 1
      ? { stride: 0, align: 1, group: false }
      : {
        stride: 1,
        align: workgroupSize === lanes ? MAX_ALIGN : lanes,
        group: false,
      };
  }

  /** Forgets shapes derived from variables that have changed since. */
  reset(): void {
    this.#memo.clear();
  }

  of(e: Expr): Shape {
    let shape = this.#memo.get(e);
    if (!shape) {
      shape = this.#derive(e);
      this.#memo.set(e, shape);
    }
    return shape;
  }

  /** Whether a value is uniform over the lanes. */
  isUniform(e: Expr): boolean {
    return this.of(e).stride === 0;
  }

  /** Whether the lanes of a vector are in one aligned block of as many elements, in order. */
  isAlignedRun(shape: Shape): boolean {
    return shape.stride === 1 && shape.align >= this.lanes;
  }

  #derive(e: Expr): Shape {
    switch (e.op) {
      case "const": {
        const value = Number(e.value);
        const isInteger = e.type === "u32" || e.type === "i32";
        return {
          stride: 0,
          align: isInteger ? lowBit(value) : 1,
          group: true,
          ...(isInteger ? { value } : {}),
        };
      }
      case "local":
        return this.variables.get(e.name)?.shape ?? VARYING;
      case "id":
        return e.name === "local"
          ? this.#local
          : { stride: 0, align: 1, group: true };
      case "load":
      case "shared":
        return this.#plain([e.index]);
      case "unary": {
        const a = this.of(e.a);
        if (e.fn !== "neg" || e.type === "f32" || a.stride === null) {
          return this.#plain([e.a]);
        }
        return { stride: -a.stride | 0, align: a.align, group: a.group };
      }
      case "binary":
        return this.#binary(e);
      case "call":
        return this.#plain(e.args);
      case "select": {
        const condition = this.of(e.condition);
        const joined = join(this.of(e.a), this.of(e.b));
        if (condition.stride !== 0 || joined.stride === null) {
          return this.#plain([e.condition, e.a, e.b]);
        }
        return {
          stride: joined.stride,
          align: joined.align,
          group: condition.group && joined.group,
        };
      }
      case "convert":
      case "bitcast": {
        const isInteger = (e.type === "u32" || e.type === "i32") &&
          (e.a.type === "u32" || e.a.type === "i32");
        return isInteger ? this.of(e.a) : this.#plain([e.a]);
      }
    }
  }

  /** Uniform if all operands are. */
  #plain(operands: readonly Expr[]): Shape {
    const shapes = operands.map((operand) => this.of(operand));
    return shapes.every((s) => s.stride === 0)
      ? { stride: 0, align: 1, group: shapes.every((s) => s.group) }
      : VARYING;
  }

  #binary(e: Extract<Expr, { op: "binary" }>): Shape {
    const a = this.of(e.a);
    const b = this.of(e.b);
    const plain = this.#plain([e.a, e.b]);
    const group = a.group && b.group;
    if (e.a.type !== "u32" && e.a.type !== "i32") return plain;
    if (a.stride === null || b.stride === null) return plain;
    switch (e.fn) {
      case "add":
      case "sub": {
        const sign = e.fn === "add" ? 1 : -1;
        return {
          stride: (a.stride + sign * b.stride) | 0,
          align: Math.min(a.align, b.align),
          group,
        };
      }
      case "mul": {
        const align = Math.min(MAX_ALIGN, a.align * b.align);
        if (b.value !== undefined) {
          return { stride: Math.imul(a.stride, b.value), align, group };
        }
        if (a.value !== undefined) {
          return { stride: Math.imul(b.stride, a.value), align, group };
        }
        return a.stride === 0 && b.stride === 0
          ? { stride: 0, align, group }
          : VARYING;
      }
      case "shl": {
        const factor = b.value === undefined ? undefined : 2 ** (b.value & 31);
        if (factor === undefined) return plain;
        return {
          stride: Math.imul(a.stride, factor | 0),
          align: Math.min(MAX_ALIGN, a.align * factor),
          group,
        };
      }
      case "shr":
        return b.value !== undefined && 2 ** (b.value & 31) >= this.lanes &&
            this.isAlignedRun(a)
          ? {
            stride: 0,
            align: Math.max(1, a.align / 2 ** (b.value & 31)),
            group: false,
          }
          : plain;
      case "div":
      case "rem": {
        const { value = 0 } = b;
        const isWhole = e.type === "u32" && this.isAlignedRun(a) &&
          value > 0 && value % this.lanes === 0;
        if (!isWhole) return plain;
        return e.fn === "div" ? { stride: 0, align: 1, group: false } : {
          stride: 1,
          align: Math.min(a.align, lowBit(value)),
          group: false,
        };
      }
      case "and": {
        const span = (b.value ?? 0) + 1;
        return this.isAlignedRun(a) && span >= this.lanes &&
            lowBit(span) === span
          ? { stride: 1, align: Math.min(a.align, span), group: false }
          : plain;
      }
      case "lt":
      case "ge":
        // An aligned run is entirely below or entirely above a multiple of its length.
        return this.isAlignedRun(a) && b.stride === 0 && b.align >= this.lanes
          ? { stride: 0, align: 1, group: false }
          : plain;
      case "min":
      case "max":
        return plain.stride === 0
          ? { stride: 0, align: Math.min(a.align, b.align), group }
          : plain;
      default:
        return plain;
    }
  }
}
