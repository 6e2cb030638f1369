/** The part of the WebAssembly API that we use, typed here because Node's types do not have it. */

/** Linear memory. */
export interface WasmMemory {
  readonly buffer: SharedArrayBuffer;
  grow(pages: number): number;
}

/** A compiled module; workers can be sent one. */
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

/** The engine's WebAssembly. */
export const webAssembly: WebAssemblyApi =
  (globalThis as unknown as { readonly WebAssembly: WebAssemblyApi })
    .WebAssembly;
