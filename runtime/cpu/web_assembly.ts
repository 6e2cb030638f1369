/** The used part of the WebAssembly API, typed here because Node's types do not include it. */

/** Linear memory. */
export interface WasmMemory {
  readonly buffer: SharedArrayBuffer;
  grow(pages: number): number;
}

/** A compiled module, which can be sent to workers. */
export type CompiledModule = object;

interface WebAssemblyApi {
  readonly Memory: new (limits: {
    readonly initial: number;
    readonly maximum: number;
    readonly shared: true;
  }) => WasmMemory;
  readonly Module: new (bytes: Uint8Array<ArrayBuffer>) => CompiledModule;
  readonly Instance: new (
    module: CompiledModule,
    imports: { readonly env: { readonly memory: WasmMemory } },
  ) => {
    readonly exports: { readonly [name: string]: (...args: number[]) => void };
  };
  compile(bytes: Uint8Array<ArrayBuffer>): Promise<CompiledModule>;
}

/** The WebAssembly API of the engine. */
export const webAssembly: WebAssemblyApi =
  (globalThis as unknown as { readonly WebAssembly: WebAssemblyApi })
    .WebAssembly;
