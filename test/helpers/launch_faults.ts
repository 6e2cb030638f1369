/**
 * Checks a launch in the tree interpreter: it stores each expected element once, nothing else, and loads only written
 * elements.
 */

import type { Grid } from "../../compiler/kernels/mod.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { evaluateSize } from "../../spec/size.ts";
import { interpretKernel, type Watch } from "./interpret_kernel.ts";

/** Elements that a launch stores: the first n; those listed; or any `count` of those listed. */
export type Stored =
  | number
  | readonly number[]
  | { readonly count: number; readonly among: readonly number[] };

/** A launch with its operands and expected stores. */
export interface Launch {
  readonly kernel: () => Kernel;
  readonly grid: Grid;
  /** Complete contents of bindings that it reads. NaN: unwritten. */
  readonly reads: { readonly [binding: string]: Iterable<number> };
  readonly stores: { readonly [binding: string]: Stored };
  /** Bindings that it may load beyond the last element. Results must not depend on these values. */
  readonly beyond?: readonly string[];
}

/** Contents of bindings, as u32 words. */
export interface Contents {
  readonly [binding: string]: Uint32Array;
}

/** Bits of unwritten memory. */
const UNWRITTEN = 0x7fc0dead;

/** Guard elements after the last that a launch may store. */
const GUARD = 4;

/** A launch whose kernel is built. */
type Built = Omit<Launch, "kernel"> & { readonly kernel: Kernel };

function built(launch: Launch): Built {
  return { ...launch, kernel: launch.kernel() };
}

function contentsOf({ kernel, reads, stores }: Built): Contents {
  return Object.fromEntries(kernel.bindings.map(({ name, type }) => {
    const known = reads[name];
    if (known === undefined) {
      const last = Math.max(-1, ...mayStore(stores[name] ?? 0));
      return [name, new Uint32Array(last + 1 + GUARD).fill(UNWRITTEN)];
    }
    const numbers = [...known];
    const words = type === "f32"
      ? new Uint32Array(Float32Array.from(numbers).buffer)
      : Uint32Array.from(numbers);
    numbers.forEach((n, i) => Number.isNaN(n) && (words[i] = UNWRITTEN));
    return [name, words];
  }));
}

function mayStore(stored: Stored): readonly number[] {
  if (typeof stored === "number") {
    return Array.from({ length: stored }, (_, i) => i);
  }
  return "among" in stored ? stored.among : stored;
}

function run(launch: Built, contents: Contents, watch: Watch): void {
  const [x, y, z] = launch.grid.map((size) => evaluateSize(size, () => 0));
  interpretKernel(launch.kernel, contents, [x!, y!, z!], watch);
}

/** Returns the contents of all bindings after a launch. */
export function resultsOf(launch: Launch): Contents {
  return runBuilt(built(launch));
}

function runBuilt(launch: Built): Contents {
  const contents = contentsOf(launch);
  run(launch, contents, {});
  return contents;
}

/** Invocation that stores an element, before one has. */
const NOBODY = -1;

/** Returns up to three faults of a launch. */
export function faultsOf(of: Launch): readonly string[] {
  const launch = built(of);
  const { kernel, reads, stores } = launch;
  const faults: string[] = [];
  const fault = (text: string) => {
    if (faults.length < 3) faults.push(`${kernel.name}: ${text}`);
  };
  const contents = contentsOf(launch);
  const by = new Map(
    Object.entries(contents).map(([name, { length }]) => [
      name,
      new Int32Array(length).fill(NOBODY),
    ]),
  );
  const unwritten = new Map(
    Object.entries(reads).map(([name, numbers]) => [
      name,
      Uint8Array.from(numbers, (n) => Number(Number.isNaN(n))),
    ]),
  );
  let iterations = 0;
  run(launch, contents, {
    store(invocation, binding, index) {
      const writers = by.get(binding)!;
      const first = writers[index]!;
      if (first !== NOBODY && first !== invocation) {
        fault(`${binding}[${index}] is stored by ${first} and ${invocation}`);
      }
      writers[index] = invocation;
    },
    load(invocation, binding, index) {
      // The index into an empty binding is outside.
      const writer = by.get(binding)![index] ?? NOBODY;
      const missing = unwritten.get(binding);
      const given = missing !== undefined && missing[index] !== 1;
      if (writer === NOBODY ? !given : writer !== invocation) {
        fault(`${binding}[${index}] is loaded and is not written`);
      }
    },
    outside(_, binding, index) {
      if (launch.beyond?.includes(binding)) return;
      fault(`there is no ${binding}[${index}], which is loaded or stored`);
    },
    iteration: () => iterations++,
  });
  for (const { name, access } of kernel.bindings) {
    if (access === "read") continue;
    const stored = new Set<number>();
    by.get(name)!.forEach((writer, index) => {
      if (writer !== NOBODY) stored.add(index);
    });
    const may = new Set(mayStore(stores[name] ?? 0));
    for (const index of stored) {
      if (!may.has(index)) fault(`${name}[${index}] is stored`);
    }
    const wanted = stores[name] ?? 0;
    const count = typeof wanted === "object" && "count" in wanted
      ? wanted.count
      : may.size;
    if (stored.size < count) {
      const missing = [...may].find((index) => !stored.has(index));
      fault(`${name}[${missing}] is not stored`);
    }
    if (stored.size > count) fault(`${stored.size} of ${name} are stored`);
  }
  if (launch.beyond && faults.length === 0) {
    const more = Object.fromEntries(launch.beyond.map((name) => [
      name,
      [...reads[name]!, ...new Array<number>(4096).fill(NaN)],
    ]));
    const other = runBuilt({ ...launch, reads: { ...reads, ...more } });
    for (const name of Object.keys(stores)) {
      if (`${contents[name]}` === `${other[name]}`) continue;
      fault(`${name} depends on values beyond the end of ${launch.beyond}`);
    }
  }
  const elements = Object.values(contents).reduce((n, a) => n + a.length, 0);
  const invocations = launch.grid.reduce<number>(
    (n, size) => n * evaluateSize(size, () => 0),
    kernel.workgroupSize,
  );
  if (iterations > invocations * (64 + elements) ** 2) {
    fault(`${iterations} iterations of loops`);
  }
  return faults;
}
