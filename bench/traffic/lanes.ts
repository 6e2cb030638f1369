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
import { someStatement } from "../../spec/kernel/walk.ts";
import {
  type SubgroupTiles,
  subgroupTiles,
} from "../../spec/kernel/wgsl/matrices.ts";
import { countMatrices } from "./on_matrices.ts";
import { firstElements, limitsOf, madeUp } from "./operands.ts";
import {
  adjacentLoads,
  adjacentStores,
  type SharedLoad,
  type SharedStore,
  splitIndex,
} from "./adjacent.ts";

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
  /** Whether a variable has the loaded value: lanes wait for it in `arrived`. */
  readonly ahead?: boolean;
}

/** Is notified of what a workgroup executes. */
export interface LaneMeter {
  /** `count` arithmetic instructions. */
  issue(mask: Mask, count: number): void;
  /** An access of a binding. */
  memory(access: Access): void;
  /** The first use of a variable that was loaded. */
  arrived(): void;
  /** An access of workgroup memory. */
  shared(access: Access): void;
  barrier(): void;
  /**
   * Multiply-adds of matrices of all subgroups, and instructions of a subgroup and passes over workgroup memory that
   * load and store matrices.
   */
  matrices(work: {
    readonly multiplyAdds: number;
    readonly accesses: number;
    readonly passes: number;
  }): void;
  /**
   * Until `leave`, an executed iteration stands for `weight` of a loop; loads of `unroll` iterations are in flight at
   * once.
   */
  enter(loop: { readonly weight: number; readonly unroll: number }): void;
  /** The end of an iteration of the innermost loop. */
  iterated(): void;
  leave(): void;
}

/** Options of `runGroup`. */
export interface RunGroupOptions {
  readonly group: readonly [number, number, number];
  /**
   * An integer in a binding. Undefined: unknown, read as its index: such integers differ, as the choices of a token do.
   */
  readonly load: (binding: string, index: number) => number | undefined;
  /** Iterations of an innermost loop without barriers whose loads are in flight at once. */
  readonly unroll: number;
  /** Lanes of a subgroup, if subgroups multiply matrices. Default: they do not. */
  readonly matrices?: number | undefined;
}

/**
 * Words below which a constant that an index adds is part of the instruction: PTX addresses have immediate offsets;
 * those of CDNA 3 have 16 bits in workgroup memory and 12 bits beyond it (ISA, DS and GLOBAL instructions).
 */
const IMMEDIATE = 1024;

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
  /** Variables with loaded values that were not used. */
  const arriving = new Set<string>();
  const cells = new Map(
    kernel.shared.map(({ name, length }) => [name, new Float64Array(length)]),
  );
  const numbers: { readonly [I in Exclude<IdName, "local">]: number } = {
    "group.x": group[0],
    "group.y": group[1],
    "group.z": group[2],
  };
  for (const [name, of] of part ? firstElements(part) : []) {
    variables.set(name, lanes(of));
  }
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
        if (arriving.has(e.name)) {
          arriving.clear();
          meter.arrived();
        }
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
    const [base, offset] = splitIndex(at.index);
    const first = offset === 0 || offset >= IMMEDIATE
      ? value(at.index, mask)
      : value(base, mask).map((i) => i + offset);
    return { node, op, name, mask, index: first, width };
  }

  function assign(name: string, values: Lanes, mask: Mask): void {
    const old = variables.get(name);
    variables.set(
      name,
      old ? old.map((x, i) => mask[i] ? values[i]! : x) : values,
    );
  }

  /** A variable with a loaded value, or with that of another such variable, does not wait for it. */
  function assignValue(
    { name, value: of }: Extract<
      MatrixStmt,
      { readonly op: "let" | "var" | "set" }
    >,
    mask: Mask,
  ): void {
    if (of.op === "load") {
      const access = accessOf(of, of.binding, { index: of.index, mask });
      meter.memory({ ...access, ahead: true });
      assign(name, loaded(access, of.type, 0), mask);
      arriving.add(name);
    } else if (of.op === "local" && arriving.has(of.name)) {
      assign(name, variables.get(of.name)!, mask);
      arriving.add(name);
    } else {
      assign(name, value(of, mask), mask);
      arriving.delete(name);
    }
  }

  function block(body: readonly MatrixStmt[], mask: Mask): void {
    if (!mask.includes(1)) return;
    for (let n = 0; n < body.length;) {
      const stores = adjacentStores(body, n, part?.operands);
      const loads = adjacentLoads(body, n);
      if (stores.length > 0) storeShared(stores, mask);
      else if (loads.length > 1) loadShared(loads, mask);
      else statement(body[n]!, mask);
      n += Math.max(1, stores.length, loads.length);
    }
  }

  /**
   * The operands of matrices that adjacent stores round. One instruction of subgroups of 32 lanes rounds two
   * (`cvt.rn.f16x2.f32`, PTX ISA); those of 64 round one each, pack two, and limit with one instead of two (CDNA 3 ISA:
   * `v_cvt_f16_f32`, `v_pack_b32_f16`, `v_med3_f32`).
   */
  function storedOperands(
    stores: readonly SharedStore[],
    { size }: SubgroupTiles,
    mask: Mask,
  ): readonly Lanes[] {
    const rounded =
      stores.filter(({ value: e }) => e.op === "call" && e.fn === "roundF16")
        .length;
    const pairs = Math.floor(rounded / 2);
    meter.issue(mask, size === 64 ? rounded + pairs : rounded - pairs);
    return stores.map(({ value: e }) => {
      if (e.op !== "call" || e.fn !== "roundF16") return value(e, mask);
      const { limited, by } = limitsOf(e.args[0]!);
      if (by > 0) meter.issue(mask, size === 64 ? 1 : 2);
      return value(limited, mask).map((x) => {
        const within = by > 0 ? Math.max(-by, Math.min(by, x)) : x;
        return FUNCTIONS.roundF16.of(Math.fround, within);
      });
    });
  }

  /** Stores in adjacent elements, as one access if the first is aligned. */
  function storeShared(stores: readonly SharedStore[], mask: Mask): void {
    const [first] = stores as [SharedStore];
    const { array } = first;
    const words = cells.get(array)!;
    const operands = part?.operands.has(array)
      ? storedOperands(stores, part, mask)
      : undefined;
    const accesses = stores.map((s, n) => {
      const stored = operands?.[n] ?? value(s.value, mask);
      const access = accessOf(s, array, { op: "store", index: s.index, mask });
      for (const [lane, i] of access.index.entries()) {
        if (mask[lane]) words[i] = stored[lane]!;
      }
      return access;
    });
    const perWord = part?.operands.has(array) ? 2 : 1;
    const isAligned = accesses[0]!.index.every((i, lane) =>
      !mask[lane] || i % stores.length === 0
    );
    const width = isAligned ? Math.max(1, stores.length / perWord) : 1;
    for (const access of isAligned ? accesses.slice(0, 1) : accesses) {
      const index = access.index.map((i) => Math.floor(i / perWord / width));
      meter.shared({ ...access, index, width });
    }
  }

  /** Loads of adjacent elements, as one access if the first is aligned. */
  function loadShared(lets: readonly SharedLoad[], mask: Mask): void {
    const [{ value: first }] = lets as [SharedLoad];
    const { index } = accessOf(first, first.array, {
      index: first.index,
      mask,
    });
    const width = lets.length;
    if (!index.every((i, lane) => !mask[lane] || i % width === 0)) {
      return lets.forEach((s) => statement(s, mask));
    }
    const at = index.map((i) => i / width);
    meter.shared({
      node: first,
      op: "load",
      name: first.array,
      mask,
      index: at,
      width,
    });
    const words = cells.get(first.array)!;
    for (const [n, { name }] of lets.entries()) {
      assign(name, index.map((i) => words[i + n] ?? 0), mask);
    }
  }

  function statement(s: MatrixStmt, mask: Mask): void {
    switch (s.op) {
      case "let":
      case "var":
      case "set":
        return assignValue(s, mask);
      case "loads": {
        const access = accessOf(s, s.binding, {
          index: s.index,
          width: s.names.length,
          mask,
        });
        meter.memory({ ...access, ahead: true });
        for (const [offset, name] of s.names.entries()) {
          assign(name, loaded(access, s.type, offset), mask);
          arriving.add(name);
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
      case "sharedStore":
        return storeShared([s], mask);
      case "barrier":
        return meter.barrier();
      case "matrices":
        return;
      case "multiply":
      case "storeMatrix":
      case "scaleRows":
      case "results":
        return countMatrices(s, { all: part!, mask, meter, cells, block });
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
