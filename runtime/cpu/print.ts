/**
 * Prints kernels as WebAssembly SIMD. Four consecutive invocations of a workgroup are the lanes of a vector; a loop
 * iterates over the vectors of a workgroup, and an outer one over workgroups. Kernels whose workgroup size is not a
 * multiple of the vector size run one invocation at a time.
 */

import { mergedParts } from "../../spec/kernel/merge.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { lowerKernel } from "../vector/lower.ts";
import { Emitter, SCRATCH } from "./emit.ts";
import { Library } from "./library.ts";
import { WasmFunction, WasmModule } from "./wasm.ts";

/** Bytes of a launch record before its bindings; see `RECORD` for the words. */
export const RECORD_BYTES = 44;
/** Words of a launch record. They are followed by address and length in elements of each binding. */
export const RECORD = {
  op: 0,
  groups: 1,
  x: 2,
  y: 3,
  next: 4,
  done: 5,
  words: 6,
  chunk: 7,
  /** Start and end of the launch, in units of 10 ns from the start of the batch. */
  start: 8,
  end: 9,
  /** Picoseconds per workgroup on one thread. */
  cost: 10,
} as const;
/** Readable bytes around every array in memory, for vectors that overlap its ends. */
export const GUARD_BYTES = 16;

/** This module. Its hash is part of the key of cached modules. */
export const PRINTER = import.meta.url;

/** A module of kernels: its exports `run0`, `run1`, … take a record, first and last group, and scratch memory. */
export interface PrintedModule {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Bytes of scratch memory that each kernel needs, in order. */
  readonly scratch: readonly number[];
}

/** Prints kernels into one module. `lanes: 1` prints all of them one invocation at a time, for tests. */
export function printKernels(
  kernels: readonly Kernel[],
  options: { readonly lanes?: 1 } = {},
): PrintedModule {
  const module = new WasmModule();
  const library = new Library(module);
  const scratch = kernels.map((kernel, i) => {
    const lanes = options.lanes === 1 || kernel.workgroupSize % 4 !== 0 ? 1 : 4;
    const parts = mergedParts(kernel).map(({ end, kernel }) => {
      return { end, ...printPart(kernel, lanes, { library }) };
    });
    const run = parts.length === 1 ? parts[0]!.f : printParts(
      parts.map(({ end, f }) => ({ end, index: module.add(f) })),
    );
    module.add(run, `run${i}`);
    return Math.max(...parts.map(({ scratch }) => scratch));
  });
  return { bytes: module.encode(), scratch };
}

/** The loop over workgroups from local 1 up to local 2. `body` also advances to the next one. */
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

/**
 * Pushes the workgroup's number divided by the number along y; the remainder is its index along y, which varies
 * fastest.
 */
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
  const [height, y, next] = [f.local("i32"), f.local("i32"), f.local("i32")];
  // Sets `next` to the smaller of a local and the top of the stack.
  const setNext = (max: number) => {
    f.tee(next);
    f.get(max);
    f.get(next);
    f.get(max);
    f.op("i32.lt_u", "select");
    f.set(next);
  };
  f.get(0);
  f.load("i32.load", 4 * RECORD.y);
  f.set(height);
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
      // The following workgroups along y in the same part, up to local 2.
      f.i32(end ?? -1);
      setNext(height);
      f.get(1);
      f.get(y);
      f.op("i32.sub");
      f.get(next);
      f.op("i32.add");
      setNext(2);
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

/** Prints a kernel, or one part of a merged one, as a function. */
function printPart(
  kernel: Kernel,
  lanes: 1 | 4,
  { library }: { readonly library: Library },
): { f: WasmFunction; scratch: number } {
  const f = new WasmFunction(["i32", "i32", "i32", "i32"], []);
  const program = lowerKernel(kernel, {
    lanes,
    vectorBytes: 16,
    guardBytes: GUARD_BYTES,
    loops: "unrolled",
    inMemory: "resting",
  });
  const emitter = new Emitter(f, library);
  for (const memory of program.memories) {
    const [address, length] = [f.local("i32"), f.local("i32")];
    const vectorEnd = f.local("i32");
    if ("binding" in memory) {
      const at = RECORD_BYTES + 8 * memory.binding;
      f.get(0);
      f.load("i32.load", at);
      f.set(address);
      f.get(0);
      f.load("i32.load", at + 4);
    } else {
      f.get(SCRATCH);
      f.i32(memory.offset);
      f.op("i32.add");
      f.set(address);
      f.i32(memory.length);
    }
    f.set(length);
    f.get(length);
    f.i32(5);
    f.op("i32.add");
    f.set(vectorEnd);
    emitter.views.set(memory, { address, length, vectorEnd });
  }
  const first = emitter.localOf(program.first);
  const { parts, partBytes } = program;
  const base = f.local("i32");
  emitter.part = { local: base, first, parts, bytes: partBytes / lanes };
  const [x, y, z] = program.groups.map((local) => emitter.localOf(local));
  const rest = f.local("i32");
  eachGroup(f, () => {
    // Along y first: a matmul's rows, which are more bytes than columns, stay in the cache, and its weights are
    // consecutive.
    pushAlongY(f, "i32.rem_u");
    f.set(y!);
    pushAlongY(f, "i32.div_u");
    f.set(rest);
    for (const [op, local] of [["i32.rem_u", x], ["i32.div_u", z]] as const) {
      f.get(rest);
      f.get(0);
      f.load("i32.load", 4 * RECORD.x);
      f.op(op);
      f.set(local!);
    }
    emitter.list(program.body);
    f.get(1);
    f.i32(1);
    f.op("i32.add");
    f.set(1);
  });
  return { f, scratch: program.scratch };
}
