/**
 * Executes one workgroup of a kernel tree, all lanes in lock step under masks, as a GPU does. A meter is notified of
 * every instruction. Floats in bindings are made up; integers are given.
 */

import {
  BINARY,
  bitsOf,
  converted,
  FUNCTIONS,
  ofBits,
  UNARY,
} from "../../spec/kernel/semantics.ts";
import type {
  Expr,
  ForStmt,
  IdName,
  Kernel,
  MatrixStmt,
  ScalarType,
  Stmt,
} from "../../spec/kernel/tree.ts";
import {
  MATRIX_SIZE,
  type OnMatrices,
  tileOfStatement,
} from "../../spec/kernel/matrices.ts";
import { someStatement } from "../../spec/kernel/walk.ts";
import {
  elementsOfMatrix,
  matricesOf,
  type SubgroupTiles,
  subgroupTiles,
} from "../../spec/kernel/wgsl_matrices.ts";

/** A value of each lane. */
export type Lanes = Float64Array;

/** 1 for each active lane, else 0. */
export type Mask = Uint8Array;

/** A load or store of all active lanes. */
export interface Access {
  /** The expression or statement, which identifies the instruction. */
  readonly node: Expr | Stmt;
  readonly op: "load" | "store";
  /** The binding, or the array of workgroup memory. */
  readonly name: string;
  readonly mask: Mask;
  readonly index: Lanes;
  /** Consecutive words per lane; the first is `index` times this number. */
  readonly width: number;
}

/** Is notified of what a workgroup executes. */
export interface LaneMeter {
  /** `count` arithmetic instructions. */
  issue(mask: Mask, count: number): void;
  /** An access of a binding. */
  memory(access: Access): void;
  /** An access of workgroup memory. */
  shared(access: Access): void;
  barrier(): void;
  /** Multiply-adds of matrices of all subgroups, and elements of f16 and words that they exchange with workgroup memory. */
  matrices(work: {
    readonly multiplyAdds: number;
    readonly bytes: number;
  }): void;
  /** Until `leave`, an executed iteration stands for `weight` of a loop; loads of `unroll` iterations are in flight at once. */
  enter(loop: { readonly weight: number; readonly unroll: number }): void;
  /** The end of an iteration of the innermost loop. */
  iterated(): void;
  leave(): void;
}

/** Options of `runGroup`. */
export interface RunGroupOptions {
  readonly group: readonly [number, number, number];
  /** An integer in a binding. Undefined: unknown, read as its index: such integers differ, as the choices of a token do. */
  readonly load: (binding: string, index: number) => number | undefined;
  /** Iterations of an innermost loop without barriers whose loads are in flight at once. */
  readonly unroll: number;
  /** Lanes of a subgroup, if subgroups multiply matrices. Default: they do not. */
  readonly matrices?: number | undefined;
}

/** Executed iterations of an innermost loop: enough for a block of the numerics contract. Of others: fewer. */
const INNER_ITERATIONS = 64, OUTER_ITERATIONS = 4;

/** Executes a workgroup of a kernel. */
export function runGroup(
  kernel: Kernel,
  meter: LaneMeter,
  { group, load, unroll, matrices }: RunGroupOptions,
): void {
  const size = kernel.workgroupSize;
  const part = matrices === undefined
    ? undefined
    : subgroupTiles(kernel, matrices);
  const variables = new Map<string, Lanes>();
  const cells = new Map(
    kernel.shared.map(({ name, length }) => [name, new Float64Array(length)]),
  );
  const numbers: { readonly [I in Exclude<IdName, "local">]: number } = {
    "group.x": group[0],
    "group.y": group[1],
    "group.z": group[2],
  };
  block(
    part ? kernel.matrixForm! : kernel.body,
    new Uint8Array(size).fill(1),
  );

  function lanes(of: (lane: number) => number): Lanes {
    return Float64Array.from({ length: size }, (_, lane) => of(lane));
  }

  function loaded(
    { name, index, width }: Access,
    type: ScalarType,
    offset: number,
  ): Lanes {
    return index.map((i) => {
      const word = i * width + offset;
      return type === "f32" ? madeUp(word) : load(name, word) ?? word;
    });
  }

  function value(e: Expr, mask: Mask): Lanes {
    switch (e.op) {
      case "const":
        return lanes(() => Number(e.value));
      case "local":
        return variables.get(e.name) ?? lanes(() => 0);
      case "id": {
        const { name } = e;
        return lanes(name === "local" ? (i) => i : () => numbers[name]);
      }
      case "load": {
        const access = accessOf(e, e.binding, { index: e.index, mask });
        meter.memory(access);
        return loaded(access, e.type, 0);
      }
      case "shared": {
        const access = accessOf(e, e.array, { index: e.index, mask });
        meter.shared(access);
        const words = cells.get(e.array)!;
        return access.index.map((i) => words[i] ?? 0);
      }
      case "bitcast":
        return value(e.a, mask).map((x) => ofBits(e.type, bitsOf(e.a.type, x)));
      case "convert":
        meter.issue(mask, 1);
        return value(e.a, mask).map((x) => converted(x, e.a.type, e.type));
      case "unary":
        meter.issue(mask, 1);
        return value(e.a, mask).map(UNARY[e.a.type][e.fn]!);
      case "select": {
        const [c, a, b] = [e.condition, e.a, e.b].map((x) => value(x, mask));
        meter.issue(mask, 1);
        return c!.map((x, i) => x ? a![i]! : b![i]!);
      }
      case "call": {
        const args = e.args.map((a) => value(a, mask));
        const { operations, of } = FUNCTIONS[e.fn];
        meter.issue(mask, operations);
        return lanes((i) =>
          converted(
            of(Math.fround, ...args.map((a) => a[i]!)),
            e.type,
            e.type,
          )
        );
      }
      case "binary": {
        const [a, b] = [value(e.a, mask), value(e.b, mask)];
        // A multiplication by a constant is part of an address.
        if (!(e.b.op === "const" && e.fn === "mul")) meter.issue(mask, 1);
        const of = BINARY[e.a.type][e.fn]!;
        return a.map((x, i) => of(x, b[i]!));
      }
    }
  }

  function accessOf(
    node: Expr | Stmt,
    name: string,
    { op = "load", width = 1, mask, ...at }: {
      readonly op?: Access["op"];
      readonly width?: number;
      readonly mask: Mask;
      readonly index: Expr;
    },
  ): Access {
    return { node, op, name, mask, index: value(at.index, mask), width };
  }

  function assign(name: string, values: Lanes, mask: Mask): void {
    const old = variables.get(name);
    variables.set(
      name,
      old ? old.map((x, i) => mask[i] ? values[i]! : x) : values,
    );
  }

  function block(body: readonly MatrixStmt[], mask: Mask): void {
    if (mask.includes(1)) { for (const s of body) statement(s, mask); }
  }

  /** Multiplies matrices, or stores them and executes the statements for their elements. */
  function onMatrices(
    s: Exclude<OnMatrices, { readonly op: "matrices" }>,
    all: SubgroupTiles,
    mask: Mask,
  ): void {
    const { subgroups, size } = all;
    const part = tileOfStatement(all.tiles, s)!;
    const { rows, columns } = part;
    const elements = subgroups * MATRIX_SIZE ** 2;
    if (s.op === "multiply") {
      const { length } = s.products;
      const loads = (rows + length * columns) * s.depth / MATRIX_SIZE;
      const products = rows * columns * length * s.depth / MATRIX_SIZE;
      meter.barrier();
      meter.issue(mask, loads + products);
      return meter.matrices({
        multiplyAdds: rows * columns * length * s.depth * elements,
        bytes: loads * 2 * elements,
      });
    }
    if (s.op === "storeMatrix") {
      const count = rows * columns;
      meter.issue(mask, count);
      return meter.matrices({ multiplyAdds: 0, bytes: count * 4 * elements });
    }
    for (const matrix of matricesOf(part)) {
      for (const _ of s.names) {
        meter.barrier();
        meter.barrier();
        meter.issue(mask, 1 + MATRIX_SIZE ** 2 / size);
        meter.matrices({ multiplyAdds: 0, bytes: 2 * 4 * elements });
      }
      block(elementsOfMatrix(s, { ...part, size }, matrix), mask);
    }
  }

  function statement(s: MatrixStmt, mask: Mask): void {
    switch (s.op) {
      case "let":
      case "var":
      case "set":
        return assign(s.name, value(s.value, mask), mask);
      case "loads": {
        const access = accessOf(s, s.binding, {
          index: s.index,
          width: s.names.length,
          mask,
        });
        meter.memory(access);
        for (const [offset, name] of s.names.entries()) {
          assign(name, loaded(access, s.type, offset), mask);
        }
        return;
      }
      case "store": {
        const { index } = s;
        value(s.value, mask);
        return meter.memory(
          accessOf(s, s.binding, { op: "store", index, mask }),
        );
      }
      case "sharedStore": {
        const { index } = s;
        const stored = value(s.value, mask);
        const access = accessOf(s, s.array, { op: "store", index, mask });
        const isHalf = part?.operands.has(s.array);
        meter.shared(
          isHalf
            ? { ...access, index: access.index.map((i) => Math.floor(i / 2)) }
            : access,
        );
        const words = cells.get(s.array)!;
        for (const [lane, i] of access.index.entries()) {
          if (mask[lane]) words[i] = stored[lane]!;
        }
        return;
      }
      case "barrier":
        return meter.barrier();
      case "matrices":
        return;
      case "multiply":
      case "storeMatrix":
      case "results":
        return onMatrices(s, part!, mask);
      case "if": {
        const condition = value(s.condition, mask);
        block(s.then, mask.map((m, i) => m && condition[i] ? 1 : 0));
        return block(
          s.else ?? [],
          mask.map((m, i) => m && !condition[i] ? 1 : 0),
        );
      }
      case "for":
        return loop(s, mask);
    }
  }

  function loop(s: ForStmt<MatrixStmt>, mask: Mask): void {
    const from = value(s.from, mask);
    const [to, step] = [value(s.to, mask), value(s.step, mask)];
    const iterations = from.reduce(
      (max, first, i) =>
        mask[i] ? Math.max(max, Math.ceil((to[i]! - first) / step[i]!)) : max,
      0,
    );
    if (iterations === 0) return;
    const holds = (op: Stmt["op"]) =>
      someStatement(s.body as readonly Stmt[], (x) => x.op === op);
    const inner = !holds("for");
    const executed = Math.min(
      iterations,
      inner ? INNER_ITERATIONS : OUTER_ITERATIONS,
    );
    const unrolled = inner && !holds("barrier") ? unroll : 1;
    meter.enter({ weight: iterations / executed, unroll: unrolled });
    for (let n = 0; n < executed; n++) {
      const counter = from.map((first, i) => first + n * step[i]!);
      const active = mask.map((m, i) => m && counter[i]! < to[i]! ? 1 : 0);
      variables.set(s.name, counter);
      // The counter is compared and increased once per unrolled iteration.
      meter.issue(active, 2 / unrolled);
      block(s.body, active);
      meter.iterated();
    }
    meter.leave();
  }
}

/** A float from -0.5 to 0.5. */
function madeUp(word: number): number {
  return (Math.imul(word + 1, 0x9e3779b1) >>> 8) / 2 ** 24 - 0.5;
}
