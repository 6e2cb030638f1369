/**
 * Kernels to WebAssembly SIMD. Four consecutive invocations of a workgroup are the lanes of a vector; a loop runs over
 * the vectors of a workgroup, and one around it over workgroups. Kernels whose workgroups are not made of whole vectors
 * run one invocation at a time.
 */

import { endOf } from "../../spec/kernel/build.ts";
import { mergedParts } from "../../spec/kernel/merge.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { withScalarLoads } from "../../spec/kernel/vectors.ts";
import {
  analyzeShapes,
  restingVariables,
  uniqueNames,
} from "../vector/analyze.ts";
import { Expressions } from "./expression.ts";
import { MathLibrary } from "./math.ts";
import {
  cutPhases,
  invocationsOf,
  isForAll,
  type Outer,
  type Phase,
} from "../vector/phases.ts";
import { Statements } from "./statement.ts";
import { WasmFunction, WasmModule } from "./wasm.ts";

/** Bytes of a launch record before its bindings; see `RECORD` for the words. */
export const RECORD_BYTES = 44;
/** Words of a launch record. After them: address and length in elements of each binding. */
export const RECORD = {
  op: 0,
  groups: 1,
  x: 2,
  y: 3,
  next: 4,
  done: 5,
  words: 6,
  chunk: 7,
  /** When it ran, in units of 10 ns from the start of the batch. */
  start: 8,
  end: 9,
  /** What a workgroup takes one thread, in picoseconds. */
  cost: 10,
} as const;
/** The parameter of functions that is the address of their scratch memory. */
const SCRATCH = 3;
/** Bytes around every array in memory that may be read by vectors that touch its ends. */
export const GUARD_BYTES = 16;

/** This module, whose hash is part of what printed modules are kept by. */
export const PRINTER = import.meta.url;

/** A module of kernels: exports `run0`, `run1`, … take a record, first and last group, and scratch memory. */
export interface PrintedModule {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Bytes of scratch memory that each kernel needs, in order. */
  readonly scratch: readonly number[];
}

/** Print kernels into one module. `lanes: 1` prints all of them one invocation at a time, for tests. */
export function printKernels(
  kernels: readonly Kernel[],
  options: { readonly lanes?: 1 } = {},
): PrintedModule {
  const module = new WasmModule();
  const math = new MathLibrary(module);
  let storeLanes: number | undefined;
  const scratch = kernels.map((kernel, i) => {
    const lanes = options.lanes === 1 || kernel.workgroupSize % 4 !== 0 ? 1 : 4;
    const parts = mergedParts(kernel).map(({ end, kernel }) => {
      const { f, scratchBytes } = new KernelPrinter(kernel, lanes, math, () => {
        storeLanes ??= module.add(printStoreLanes());
        return storeLanes;
      });
      return { end, f, scratchBytes };
    });
    const whole = parts.length === 1 ? parts[0]!.f : printParts(
      parts.map(({ end, f }) => ({ end, index: module.add(f) })),
    );
    module.add(whole, `run${i}`);
    return Math.max(...parts.map(({ scratchBytes }) => scratchBytes));
  });
  return { bytes: module.encode(), scratch };
}

/** The loop over workgroups, which local 1 numbers up to local 2. `body` also moves on to the next one. */
function eachGroup(f: WasmFunction, body: () => void): void {
  f.block();
  f.loop();
  f.get(1);
  f.get(2);
  f.op("i32.ge_u");
  f.branchIf(1);
  body();
  f.branch(0);
  f.op("end", "end");
}

/** Push the workgroup's number over how many there are along y: its place along y is what remains, the fastest one. */
function pushAlongY(f: WasmFunction, op: "i32.div_u" | "i32.rem_u"): void {
  f.get(1);
  f.get(0);
  f.load("i32.load", 4 * RECORD.y);
  f.op(op);
}

/** A merged kernel: workgroups along y up to an end are run by one function, then by the next. */
function printParts(
  parts: readonly {
    readonly end: number | undefined;
    readonly index: number;
  }[],
): WasmFunction {
  const f = new WasmFunction(["i32", "i32", "i32", "i32"], []);
  const [y, next] = [f.local("i32"), f.local("i32")];
  eachGroup(f, () => {
    pushAlongY(f, "i32.rem_u");
    f.set(y);
    for (const { end, index } of parts) {
      if (end !== undefined) {
        f.get(y);
        f.i32(end);
        f.op("i32.lt_u");
        f.if();
      }
      // All that follow along y and are of the same part, of those up to local 2.
      f.get(1);
      f.get(y);
      f.op("i32.sub");
      if (end !== undefined) f.i32(end);
      else {
        f.get(0);
        f.load("i32.load", 4 * RECORD.y);
      }
      f.op("i32.add");
      f.tee(next);
      f.get(2);
      f.get(next);
      f.get(2);
      f.op("i32.lt_u", "select");
      f.set(next);
      f.get(0);
      f.get(1);
      f.get(next);
      f.get(3);
      f.call(index);
      if (end !== undefined) f.op("else");
    }
    for (const { end } of parts) if (end !== undefined) f.op("end");
    f.get(next);
    f.set(1);
  });
  return f;
}

/** (address, length, index, value, mask): store lanes that are active and in range, one by one. */
function printStoreLanes(): WasmFunction {
  const f = new WasmFunction(["i32", "i32", "v128", "v128", "v128"], []);
  for (let lane = 0; lane < 4; lane++) {
    f.get(4);
    f.extract(lane);
    f.get(2);
    f.extract(lane);
    f.get(1);
    f.op("i32.lt_u", "i32.and");
    f.if();
    f.get(0);
    f.get(2);
    f.extract(lane);
    f.i32(2);
    f.op("i32.shl", "i32.add");
    f.get(3);
    f.storeLane(lane);
    f.op("end");
  }
  return f;
}

/** Prints one kernel into one function. */
class KernelPrinter {
  readonly f = new WasmFunction(["i32", "i32", "i32", "i32"], []);
  scratchBytes = GUARD_BYTES;
  readonly #kernel: Kernel;
  readonly #lanes: 1 | 4;
  readonly #x: Expressions;
  readonly #statements: Statements;
  readonly #outer: readonly Outer[];
  /** Offsets in scratch memory of variables that outlive a phase. */
  readonly #slots = new Map<string, number>();
  /** Local that counts invocations, by vectors. */
  readonly #first: number;
  /** Local of where this vector's parts of slots are, less their offsets. */
  readonly #own: number;
  #sharedBytes = 0;

  constructor(
    kernel: Kernel,
    lanes: 1 | 4,
    math: MathLibrary,
    storeLanes: () => number,
  ) {
    this.#kernel = kernel;
    this.#lanes = lanes;
    const { f } = this;
    const body = uniqueNames(withScalarLoads(kernel.body));
    const shapes = analyzeShapes(kernel, body, lanes);
    this.#x = new Expressions(f, shapes, math);
    this.#statements = new Statements(this.#x, {
      storeLanes,
      take: () => ({ base: SCRATCH, offset: this.#take(16) }),
      writable: new Set(
        kernel.bindings.filter((b) => b.access !== "read").map((b) => b.name),
      ),
    });
    this.#first = f.local("i32");
    this.#own = f.local("i32");
    this.#bind();
    const { outer, crossing } = cutPhases(kernel, body, shapes);
    this.#outer = outer;
    const resting = restingVariables(body, shapes);
    if (!this.#isSingle) {
      for (const name of crossing) {
        const offset = this.#take(16 * kernel.workgroupSize / lanes);
        if (resting.delete(name)) {
          this.#x.resting.set(name, { base: this.#own, offset });
        } else this.#slots.set(name, offset);
      }
    }
    for (const name of resting) {
      this.#x.resting.set(name, { base: SCRATCH, offset: this.#take(16) });
    }
    this.#groups();
  }

  /** Take bytes of scratch memory; says where they begin. */
  #take(bytes: number): number {
    const offset = this.scratchBytes;
    this.scratchBytes += bytes;
    return offset;
  }

  /** The workgroup is one vector, so phases need no loops and variables no memory. */
  get #isSingle(): boolean {
    return this.#kernel.workgroupSize === this.#lanes;
  }

  /** Addresses and lengths of bindings and shared arrays. */
  #bind(): void {
    const { f } = this;
    const reach = (length: number) => {
      const local = f.local("i32");
      f.get(length);
      f.i32(5);
      f.op("i32.add");
      f.set(local);
      return local;
    };
    this.#kernel.bindings.forEach((binding, i) => {
      const address = f.local("i32");
      const length = f.local("i32");
      f.get(0);
      f.load("i32.load", RECORD_BYTES + 8 * i);
      f.set(address);
      f.get(0);
      f.load("i32.load", RECORD_BYTES + 8 * i + 4);
      f.set(length);
      this.#x.views.set(binding.name, {
        address,
        length,
        reach: reach(length),
      });
    });
    for (const array of this.#kernel.shared) {
      const address = f.local("i32");
      const length = f.local("i32");
      f.get(3);
      f.i32(this.scratchBytes);
      f.op("i32.add");
      f.set(address);
      f.i32(array.length);
      f.set(length);
      this.#x.views.set(array.name, { address, length, reach: reach(length) });
      this.scratchBytes += Math.ceil(array.length / 4) * 16 + GUARD_BYTES;
    }
    this.#sharedBytes = this.scratchBytes - GUARD_BYTES;
  }

  /** The loop over workgroups. */
  #groups(): void {
    const { f } = this;
    const { ids } = this.#x;
    for (const name of ["group.x", "group.y", "group.z"]) {
      ids.set(name, f.local("i32"));
    }
    ids.set("local", this.#first);
    const rest = f.local("i32");
    eachGroup(f, () => {
      // Along y first: a matmul's rows, which are more than columns, stay in the cache, and its weights follow each other.
      pushAlongY(f, "i32.rem_u");
      f.set(ids.get("group.y")!);
      pushAlongY(f, "i32.div_u");
      f.tee(rest);
      f.get(0);
      f.load("i32.load", 4 * RECORD.x);
      f.op("i32.rem_u");
      f.set(ids.get("group.x")!);
      f.get(rest);
      f.get(0);
      f.load("i32.load", 4 * RECORD.x);
      f.op("i32.div_u");
      f.set(ids.get("group.z")!);
      for (const o of this.#outer) this.#print(o);
      f.get(1);
      f.i32(1);
      f.op("i32.add");
      f.set(1);
    });
  }

  #print(o: Outer): void {
    const { f } = this;
    const x = this.#x;
    if (o.op === "phase") return this.#phase(o);
    if (o.op === "zero") {
      f.get(3);
      f.i32(GUARD_BYTES);
      f.op("i32.add");
      f.i32(0);
      f.i32(this.#sharedBytes);
      return f.fill();
    }
    if (o.op === "if") {
      x.begin([o.condition]);
      this.#recall();
      x.scalar(o.condition);
      f.if();
      for (const inner of o.then) this.#print(inner);
      f.op("else");
      for (const inner of o.else) this.#print(inner);
      return f.op("end");
    }
    const { loop } = o;
    const end = endOf(loop);
    const bounds = [loop.from, end, loop.step];
    const [counter, to, step] = [
      this.#statements.localOf(loop.name),
      f.local("i32"),
      f.local("i32"),
    ];
    x.begin(bounds);
    this.#recall();
    x.scalar(loop.from);
    f.set(counter);
    x.scalar(end);
    f.set(to);
    x.scalar(loop.step);
    f.set(step);
    f.block();
    f.loop();
    f.get(counter);
    f.get(to);
    f.op("i32.ge_u");
    f.branchIf(1);
    for (const inner of o.body) this.#print(inner);
    f.get(counter);
    f.get(step);
    f.op("i32.add");
    f.set(counter);
    f.branch(0);
    f.op("end", "end");
  }

  /** Between phases, a uniform variable that lives in memory has the value that the first invocation sees. */
  #recall(): void {
    if (this.#slots.size === 0) return;
    this.f.i32(0);
    this.f.set(this.#first);
    this.#findOwn();
    for (const name of this.#slots.keys()) {
      if (this.#x.shapes.variables.get(name)!.shape.group) this.#load(name);
    }
  }

  #phase(phase: Phase): void {
    const { f } = this;
    let start = 0;
    f.i32(0);
    f.set(this.#first);
    if (this.#isSingle) return this.#statements.list(phase.body);
    // What the whole workgroup shares is computed once.
    for (const s of phase.body) {
      if (!isForAll(s, this.#x.shapes)) break;
      this.#statements.statement(s);
      start++;
    }
    f.loop();
    this.#findOwn();
    for (const name of phase.reads) this.#load(name);
    this.#statements.list(phase.body.slice(start));
    for (const name of phase.writes) this.#save(name);
    f.get(this.#first);
    f.i32(this.#lanes);
    f.op("i32.add");
    f.tee(this.#first);
    f.i32(invocationsOf(phase, this.#kernel.workgroupSize));
    f.op("i32.lt_u");
    f.branchIf(0);
    f.op("end");
  }

  #findOwn(): void {
    const { f } = this;
    f.get(this.#first);
    f.i32(this.#lanes === 4 ? 2 : 4);
    f.op("i32.shl");
    f.get(SCRATCH);
    f.op("i32.add");
    f.set(this.#own);
  }

  #load(name: string): void {
    if (!this.#slots.has(name)) return;
    this.f.get(this.#own);
    this.f.load(
      this.#statements.isScalar(name) ? "i32.load" : "v128.load",
      this.#slots.get(name)!,
    );
    this.f.set(this.#statements.localOf(name));
  }

  #save(name: string): void {
    if (!this.#slots.has(name)) return;
    this.f.get(this.#own);
    this.f.get(this.#statements.localOf(name));
    this.f.load(
      this.#statements.isScalar(name) ? "i32.store" : "v128.store",
      this.#slots.get(name)!,
    );
  }
}
