/**
 * Classes `kernel`, `kernel-native`, `kernel-gpu` and `kernel-wgpu`: a valid kernel tree has the results of the tree
 * interpreter in WebAssembly, in C, on a GPU, and in Deno.
 */

import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { deserialize, serialize } from "node:v8";
import fc from "fast-check";
import { printWgsl } from "../../spec/kernel/wgsl/wgsl.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { readTree } from "../../spec/kernel/verify/tree.ts";
import { interpretKernel } from "../helpers/interpret_kernel.ts";
import { clonePath } from "../helpers/compiled.ts";
import { DENO } from "../helpers/nodes.ts";
import {
  type KernelRun,
  runNative,
  runOnDevice,
} from "../helpers/run_native.ts";
import { runWasm } from "../helpers/run_wasm.ts";
import {
  createGpuDevice,
  type Device,
  listAdapters,
} from "../../runtime/mod.ts";
import { NativePool, whyNotNative } from "../../runtime/native/mod.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";
import {
  LENGTH,
  randomKernel,
  type RandomKernelOptions,
} from "./random_kernel.ts";

/** Random numbers from which a kernel is built. */
type Numbers = readonly number[];

type Data = { readonly [binding: string]: Uint32Array };

function data(): Data {
  const a = Float32Array.from({ length: LENGTH }, (_, i) => (i - 40) * 0.75);
  return {
    a: new Uint32Array(a.buffer),
    n: Uint32Array.from({ length: LENGTH }, (_, i) => (i * 7919) % 101),
    y: new Uint32Array(LENGTH),
    z: new Uint32Array(LENGTH),
  };
}

/** Returns the first difference, or undefined. All NaNs are equal; with `portable`, so are zeros of both signs. */
function difference(
  wanted: Data,
  found: Data,
  portable: boolean,
): string | undefined {
  for (const name of ["y", "z"]) {
    const [w, f] = [wanted[name]!, found[name]!];
    const [wf, ff] = [new Float32Array(w.buffer), new Float32Array(f.buffer)];
    for (let i = 0; i < LENGTH; i++) {
      if (w[i] === f[i]) continue;
      if (name === "y" && Number.isNaN(wf[i]) && Number.isNaN(ff[i])) continue;
      if (name === "y" && portable && wf[i] === ff[i]) continue;
      const show = (words: Uint32Array, floats: Float32Array) =>
        name === "y" ? String(floats[i]) : String(words[i]);
      return `${name}[${i}] is ${show(f, ff)} and not ${show(w, wf)}`;
    }
  }
  return undefined;
}

/** Program that runs kernels in Deno. */
const RUN_KERNELS = clonePath("test/fixtures/deno/run_kernels.ts");

/** Runs a kernel. Updates its bindings in place. */
interface Target {
  run(kernel: Kernel, on: KernelRun): Promise<void> | void;
  close?(): Promise<void>;
}

/** Device that runs kernels. */
export interface KernelTarget {
  readonly name: string;
  /** Outcome of equal results. */
  readonly equal: string;
  readonly options?: RandomKernelOptions;
  /** Opens its targets, or returns the reason that it cannot. */
  open(): Promise<readonly Target[] | string>;
}

/** WebAssembly, with vectors and with scalars. */
export const WASM: KernelTarget = {
  name: "kernel",
  equal: "equal in WebAssembly",
  open: () =>
    Promise.resolve([{}, { lanes: 1 } as const].map((options) => ({
      run: (kernel, { bindings, groups }) =>
        runWasm(kernel, bindings, groups, options),
    }))),
};

/** Compiled C. */
export const NATIVE: KernelTarget = {
  name: "kernel-native",
  equal: "equal in C",
  open: async () => {
    const why = await whyNotNative();
    if (why !== undefined) return why;
    const pool = await NativePool.open(1);
    return [{
      run: (kernel, on) => runNative(pool, kernel, on),
      close: () => pool.close(),
    }];
  },
};

/** Launches per GPU device, after which it is destroyed to free memory. */
const KERNELS_A_DEVICE = 50;

/** WGSL on the first adapter. */
export const GPU: KernelTarget = {
  name: "kernel-gpu",
  equal: "equal on an adapter",
  options: { portable: true },
  open: async () => {
    const [adapter] = await listAdapters();
    if (!adapter) return "there is no GPU adapter";
    let device: Device | undefined;
    let runs = 0;
    return [{
      run: async (kernel, on) => {
        if (runs++ % KERNELS_A_DEVICE === 0) {
          device?.destroy();
          device = await createGpuDevice(adapter);
        }
        await runOnDevice(device!, { ...kernel, name: `random${runs}` }, on);
      },
      close: () => Promise.resolve(device?.destroy()),
    }];
  },
};

/** WGSL in Deno: wgpu, a second implementation of WebGPU. */
export const WGPU: KernelTarget = {
  name: "kernel-wgpu",
  equal: "equal on an adapter of wgpu",
  options: { portable: true },
  open: async () => {
    if (DENO.skip) return `Deno: ${DENO.skip}`;
    const worker = spawn(DENO.program, [...DENO.argv, RUN_KERNELS], {
      stdio: ["pipe", "pipe", "ignore"],
    });
    // A worker that has exited sends no answer, which fails the run.
    worker.stdin.on("error", () => {});
    const lines = createInterface({ input: worker.stdout });
    const answers = lines[Symbol.asyncIterator]();
    const run: Target["run"] = async (kernel, on) => {
      const line = serialize({ kernel, on }).toString("base64");
      worker.stdin.write(`${line}\n`);
      const { value, done } = await answers.next();
      if (done) throw new Error(`Deno ended with ${worker.exitCode}`);
      const found = deserialize(Buffer.from(value, "base64")) as Data;
      for (const [name, words] of Object.entries(found)) {
        on.bindings[name]!.set(words);
      }
    };
    const kernel = randomKernel([1], { portable: true });
    const found = await Promise.resolve(
      run(kernel, { bindings: data(), groups: [1, 1, 1] }),
    ).catch((error: Error) => error.message);
    if (typeof found === "string") return `no adapter: ${found}`;
    return [{
      run,
      close: () => {
        worker.stdin.end();
        return Promise.resolve();
      },
    }];
  },
};

/** Compares random kernels on a target with the tree interpreter. */
export function kernelClass(on: KernelTarget = WASM): FuzzClass<Numbers> {
  let opened: ReturnType<KernelTarget["open"]> | undefined;
  const { portable = false } = on.options ?? {};
  const kernelOf = (numbers: Numbers) => randomKernel(numbers, on.options);
  return {
    name: on.name,
    count: on === WASM ? 5000 : 100,
    cases: fc.array(fc.nat(2 ** 20), {
      ...{ minLength: 1, maxLength: 250, size: "max" } as const,
    }),
    async judge(numbers) {
      const targets = await (opened ??= on.open());
      if (typeof targets === "string") return `not tried: ${targets}`;
      const kernel = kernelOf(numbers);
      const [fault] = [
        ...readTree(kernel).faults,
        ...readTree(kernel).divergent,
      ];
      if (fault !== undefined) {
        throw new Finding(`A kernel that should be valid is refused: ${fault}`);
      }
      printWgsl(kernel);
      const groups = [2, 1, 1] as const;
      const wanted = data();
      let odd = false;
      interpretKernel(kernel, wanted, groups, {
        float: (x) => {
          odd ||= !Number.isFinite(x) || x !== 0 && Math.abs(x) < 2 ** -126;
        },
      });
      // WGSL does not define results for infinite and subnormal numbers.
      if (portable && odd) return "not compared";
      for (const [i, target] of targets.entries()) {
        const found = data();
        await target.run(kernel, { bindings: found, groups });
        const differs = difference(wanted, found, portable);
        if (differs === undefined) continue;
        throw new Finding(`${differs}, of target ${i}`);
      }
      return on.equal;
    },
    evidence: (numbers) =>
      Promise.resolve({ "wgsl": printWgsl(kernelOf(numbers)) }),
    close: async () => {
      const targets = await opened;
      opened = undefined;
      if (typeof targets !== "object") return;
      for (const target of targets) await target.close?.();
    },
  };
}
