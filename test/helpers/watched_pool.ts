/**
 * Memory and launches of a device that runs kernels in the tree interpreter and checks every element: within a launch,
 * two invocations may not store one element, nor one load what another stores; within a run, loads may only read
 * written elements.
 */

import { CPU_LIMITS } from "../../runtime/cpu/mod.ts";
import type {
  HostKernel,
  HostPool,
  HostSpan,
} from "../../runtime/host/device.ts";
import type { DeviceKernel } from "../../runtime/device.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { interpretKernel } from "./interpret_kernel.ts";

const BYTES = 1 << 26;

/** Maximum number of recorded faults. */
const MAX = 5;

type Bound = readonly Uint32Array[];

/** Pool that runs on the calling thread. */
export class WatchedPool implements HostPool<Bound> {
  readonly name = "the interpreter of trees";
  readonly limits = CPU_LIMITS;
  /** Faults of launches. */
  readonly faults: string[] = [];
  /** Loads of unwritten elements. Results of a run may not depend on them. */
  readonly unwritten: string[] = [];
  readonly #garbage: number;
  /** Number of launches by kernel name. */
  readonly launched = new Map<string, number>();
  readonly #memory = new ArrayBuffer(BYTES);
  readonly #words = new Uint32Array(this.#memory);
  /** 1: the word is written, or may be read before it is. */
  readonly #written = new Uint8Array(BYTES / 4).fill(1);
  readonly #kernels: Kernel[] = [];
  readonly #spans: {
    readonly label: string;
    readonly address: number;
    readonly bytes: number;
  }[] = [];
  #next = 256;

  readonly heap = {
    allocate: (bytes: number, label: string): HostSpan => {
      const address = this.#next;
      const size = Math.ceil(bytes / 256) * 256;
      this.#next += size;
      this.#spans.push({ label, address, bytes });
      return { address, size };
    },
    view: (address: number, bytes: number): Uint8Array => {
      this.#see(address, bytes, "the host");
      return new Uint8Array(this.#memory, address, bytes);
    },
    release: () => {},
  };

  /** `garbage`: bits of unwritten memory. */
  constructor(garbage: number) {
    this.#garbage = garbage;
  }

  /** Starts a run: marks memory with some labels as unwritten. */
  begin(isUnwritten: (label: string) => boolean): void {
    for (const { label, address, bytes } of this.#spans) {
      if (!isUnwritten(label)) continue;
      this.#words.fill(this.#garbage, address / 4, (address + bytes) / 4);
      this.#written.fill(0, address / 4, (address + bytes) / 4);
    }
  }

  prepare(kernels: readonly DeviceKernel[]): Promise<HostKernel[]> {
    return Promise.resolve(kernels.map(({ tree }) => ({
      index: this.#kernels.push(tree) - 1,
      bindings: tree.bindings.length,
    })));
  }

  bind(
    ranges: readonly { readonly address: number; readonly bytes: number }[],
  ): Bound {
    return ranges.map(({ address, bytes }) =>
      new Uint32Array(this.#memory, address, Math.floor(bytes / 4))
    );
  }

  launch(
    { index }: HostKernel,
    bound: Bound,
    workgroups: readonly [number, number, number],
  ): void {
    const kernel = this.#kernels[index]!;
    this.launched.set(kernel.name, 1 + (this.launched.get(kernel.name) ?? 0));
    const names = kernel.bindings.map(({ name }) => name);
    const starts = new Map(
      names.map((name, i) => [name, bound[i]!.byteOffset / 4]),
    );
    const stored = new Map<number, number>();
    const loaded = new Map<number, number>();
    let iterations = 0;
    interpretKernel(
      kernel,
      Object.fromEntries(names.map((name, i) => [name, bound[i]!])),
      workgroups,
      {
        store: (invocation, binding, index) => {
          const word = starts.get(binding)! + index;
          const by = stored.get(word);
          if (by !== undefined && by !== invocation) {
            this.#fault(
              `${kernel.name} stores ${binding}[${index}] in invocations ${by} and ${invocation}`,
            );
          }
          stored.set(word, invocation);
          this.#written[word] = 1;
        },
        load: (invocation, binding, index) => {
          const word = starts.get(binding)! + index;
          if (this.#written[word] === 0) {
            this.#fault(
              `${kernel.name} loads ${binding}[${index}], which nothing has written`,
              this.unwritten,
            );
          }
          loaded.set(word, invocation);
        },
        iteration: () => iterations++,
      },
    );
    for (const [word, by] of stored) {
      const other = loaded.get(word);
      if (other === undefined || other === by) continue;
      this.#fault(
        `${kernel.name} stores a word in invocation ${by} and loads it in ${other}`,
      );
    }
    const elements = bound.reduce((n, { length }) => n + length, 0);
    const invocations = workgroups.reduce(
      (a, b) => a * b,
      kernel.workgroupSize,
    );
    // Attention and sorting visit all elements for each element.
    if (iterations > invocations * (64 + elements) ** 2) {
      this.#fault(
        `${kernel.name} runs ${iterations} iterations over ${elements} elements`,
      );
    }
  }

  copy(from: number, to: number, bytes: number): void {
    this.#words.copyWithin(to / 4, from / 4, (from + bytes) / 4);
    this.#written.copyWithin(to / 4, from / 4, (from + bytes) / 4);
  }

  write(address: number, data: Uint8Array): void {
    new Uint8Array(this.#memory, address, data.length).set(data);
    this.#written.fill(1, address / 4, Math.ceil((address + data.length) / 4));
  }

  settle(): Promise<void> {
    return Promise.resolve();
  }

  submit(): void {}

  close(): Promise<void> {
    return Promise.resolve();
  }

  #see(address: number, bytes: number, who: string): void {
    const words = this.#written.subarray(address / 4, (address + bytes) / 4);
    const at = words.indexOf(0);
    if (at < 0) return;
    const span = this.#spans.findLast((span) => span.address <= address)!;
    this.#fault(
      `${who} reads word ${
        address / 4 + at - span.address / 4
      } of ${span.label}, which nothing has written`,
      this.unwritten,
    );
  }

  #fault(text: string, faults = this.faults): void {
    if (faults.length < MAX) faults.push(text);
  }
}
