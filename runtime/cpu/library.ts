/** WebAssembly functions that kernels call. */

import type { CallName } from "../../spec/kernel/tree.ts";
import { MATH } from "../vector/math.ts";
import { printStoreLanes } from "./array_access.ts";
import { Emitter } from "./emit.ts";
import { WasmFunction, type WasmModule } from "./wasm.ts";

/** Functions that kernels of a module call, added on first use. */
export class Library {
  readonly #module: WasmModule;
  readonly #functions = new Map<CallName | "store", number>();

  constructor(module: WasmModule) {
    this.#module = module;
  }

  /** The index of a function of `math.ts`: v128 to v128. */
  math(name: CallName): number {
    return this.#index(name, () => {
      const { params, body } = MATH[name]!;
      const f = new WasmFunction(params.map(() => "v128"), ["v128"]);
      const emitter = new Emitter(f, this);
      params.forEach((param, i) => emitter.locals.set(param, i));
      emitter.values(body);
      return f;
    });
  }

  /** The index of the function that stores lanes one by one. */
  storeLanes(): number {
    return this.#index("store", () => {
      const f = new WasmFunction(["i32", "i32", "v128", "v128", "v128"], []);
      printStoreLanes(f);
      return f;
    });
  }

  #index(name: CallName | "store", make: () => WasmFunction): number {
    const index = this.#functions.get(name) ?? this.#module.add(make());
    this.#functions.set(name, index);
    return index;
  }
}
