/** Address ranges of the shared memory: first fit, grown on demand up to the 32-bit limit. */

import { MachineError } from "../../spec/errors.ts";
import { HOST_LIMITS, type HostSpan } from "../host/device.ts";
import { HEAP_ADDRESS } from "./control.ts";
import { GUARD_BYTES } from "./print.ts";
import { MEMORY_PAGES } from "./wasm.ts";
import { type WasmMemory, webAssembly } from "./web_assembly.ts";

const PAGE = 65536;
const ALIGN = 64;
/** Minimum number of pages by which memory grows. */
const GROW_PAGES = 128;
/** Maximum bytes of memory for all ranks of a process on the CPU. */
const HEAP_BYTES = MEMORY_PAGES * PAGE - HEAP_ADDRESS;

/** Limits of a CPU device. `memory`: bytes of all buffers of its pool together. */
export const CPU_LIMITS = {
  maxBufferSize: HEAP_BYTES,
  maxStorageBufferBindingSize: HEAP_BYTES,
  ...HOST_LIMITS,
  memory: HEAP_BYTES,
} as const satisfies { readonly [limit: string]: number };

interface Range {
  address: number;
  size: number;
}

/** The allocator of a pool's memory. */
export class Heap {
  readonly memory: WasmMemory;
  #free: Range[] = [];
  #end = HEAP_ADDRESS;

  constructor() {
    try {
      this.memory = new webAssembly.Memory({
        initial: Math.ceil(HEAP_ADDRESS / PAGE),
        maximum: MEMORY_PAGES,
        shared: true,
      });
    } catch (error) {
      throw new MachineError(
        "Cannot reserve memory for the CPU device: the system does not provide 4 GiB of address space. Raise the limit (ulimit -v)",
        { cause: error },
      );
    }
  }

  /** Allocates `bytes` zeroed bytes, with readable bytes before and after. */
  allocate(bytes: number, label: string): HostSpan {
    const size = Math.ceil((bytes + GUARD_BYTES) / ALIGN) * ALIGN + ALIGN;
    const hole = this.#free.find((span) => span.size >= size);
    if (hole) {
      const span = { address: hole.address, size };
      hole.address += size;
      hole.size -= size;
      if (hole.size === 0) this.#free.splice(this.#free.indexOf(hole), 1);
      this.view(span.address, size).fill(0);
      return this.#inside(span);
    }
    const span = { address: this.#end, size };
    this.#grow(this.#end + size, bytes, label);
    this.#end += size;
    return this.#inside(span);
  }

  /** The range starts with readable padding. */
  #inside(span: HostSpan): HostSpan {
    return { address: span.address + ALIGN, size: span.size };
  }

  #grow(end: number, bytes: number, label: string): void {
    const pages = Math.ceil(end / PAGE);
    const have = this.memory.buffer.byteLength / PAGE;
    if (pages <= have) return;
    const mib = (n: number) => `${Math.ceil(n / 2 ** 20)} MiB`;
    if (pages > MEMORY_PAGES) {
      throw new MachineError(
        `Cannot create buffer '${label}' on the CPU device: it needs ${
          mib(bytes)
        } and ${
          mib(MEMORY_PAGES * PAGE - this.#end)
        } of its 4 GiB are left. Use a GPU, or lower the bounds of the model`,
      );
    }
    try {
      const step = Math.min(GROW_PAGES, MEMORY_PAGES - have);
      this.memory.grow(Math.max(pages - have, step));
    } catch (error) {
      throw new MachineError(
        `Cannot create buffer '${label}' on the CPU device: the system has no ${
          mib(bytes)
        } left. Close other programs, or lower the bounds of the model`,
        { cause: error },
      );
    }
  }

  /** Frees memory. */
  release(span: HostSpan): void {
    const free = { address: span.address - ALIGN, size: span.size };
    const at = this.#free.findIndex((other) => other.address > free.address);
    this.#free.splice(at < 0 ? this.#free.length : at, 0, free);
    this.#free = this.#free.reduce<Range[]>((merged, next) => {
      const last = merged.at(-1);
      if (last && last.address + last.size === next.address) {
        last.size += next.size;
      } else merged.push(next);
      return merged;
    }, []);
  }

  /** Bytes of the memory. */
  view(address: number, bytes: number): Uint8Array {
    return new Uint8Array(this.memory.buffer, address, bytes);
  }
}
