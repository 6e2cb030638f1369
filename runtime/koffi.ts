/** The optional package koffi, which calls C. */

type Koffi = typeof import("koffi");

/**
 * Bytes of the stacks of calls on other threads. Kernels that the C compiler did not optimize need more than koffi's
 * default, 128 KiB.
 */
const STACK_BYTES = 4 << 20;

let imported: Promise<Koffi> | undefined;

/** Imports koffi. Throws if it is not installed. */
export function importKoffi(): Promise<Koffi> {
  return imported ??= configured();
}

async function configured(): Promise<Koffi> {
  const koffi = await import("koffi");
  // Possible only before the first library is loaded.
  koffi.config({ async_stack_size: STACK_BYTES });
  return koffi;
}
