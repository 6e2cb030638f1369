/** Class `kernel`: a valid kernel tree does the same in the interpreter of trees, in WebAssembly and in compiled C. */

import fc from "fast-check";
import { printWgsl } from "../../spec/kernel/wgsl.ts";
import { readTree } from "../../spec/verify_tree.ts";
import { interpretKernel } from "../helpers/interpret_kernel.ts";
import { runNative } from "../helpers/run_native.ts";
import { runWasm } from "../helpers/run_wasm.ts";
import { NativePool, whyNotNative } from "../../runtime/native/mod.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";
import { LENGTH, randomKernel } from "./random_kernel.ts";

/** One of so many kernels is compiled as C too: a compiler takes a hundred times as long as the others. */
const NATIVE_EVERY = 50;

/** Numbers of which a kernel is made. */
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

/** The first element that differs; what is no number is that, whatever its bits. */
function difference(wanted: Data, found: Data): string | undefined {
  for (const name of ["y", "z"]) {
    const [w, f] = [wanted[name]!, found[name]!];
    const [wf, ff] = [new Float32Array(w.buffer), new Float32Array(f.buffer)];
    for (let i = 0; i < LENGTH; i++) {
      if (w[i] === f[i]) continue;
      if (name === "y" && Number.isNaN(wf[i]) && Number.isNaN(ff[i])) continue;
      const show = (words: Uint32Array, floats: Float32Array) =>
        name === "y" ? String(floats[i]) : String(words[i]);
      return `${name}[${i}] is ${show(f, ff)} and not ${show(w, wf)}`;
    }
  }
  return undefined;
}

/** Random kernels, run differentially. */
export function kernelClass(): FuzzClass<Numbers> {
  let judged = 0;
  let pool: Promise<NativePool | undefined> | undefined;
  const open = async () =>
    await whyNotNative() === undefined ? await NativePool.open(1) : undefined;
  return {
    name: "kernel",
    count: 5000,
    cases: fc.array(fc.nat(2 ** 20), {
      ...{ minLength: 1, maxLength: 250, size: "max" } as const,
    }),
    async judge(numbers) {
      const kernel = randomKernel(numbers);
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
      interpretKernel(kernel, wanted, groups);
      for (const options of [{}, { lanes: 1 }] as const) {
        const found = data();
        runWasm(kernel, found, groups, options);
        const differs = difference(wanted, found);
        if (differs === undefined) continue;
        throw new Finding(
          `${differs}, in ${
            "lanes" in options ? "single invocations" : "vectors"
          }`,
        );
      }
      if (judged++ % NATIVE_EVERY === 0) {
        const native = await (pool ??= open());
        if (native) {
          const found = data();
          await runNative(native, kernel, { bindings: found, groups });
          const differs = difference(wanted, found);
          if (differs !== undefined) throw new Finding(`${differs}, in C`);
          return "equal in C";
        }
      }
      const lanes = kernel.workgroupSize % 4 === 0 ? "vectors" : "invocations";
      return `equal in ${lanes}`;
    },
    evidence: (numbers) =>
      Promise.resolve({ "wgsl": printWgsl(randomKernel(numbers)) }),
    close: async () => {
      await (await pool)?.close();
      pool = undefined;
    },
  };
}
