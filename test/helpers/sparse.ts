/** Files of gigabytes that take no room on the disk. */

import { closeSync, openSync, truncateSync, writeSync } from "node:fs";
import { safetensorsHead } from "../../runtime/mod.ts";

/** A tensor whose bytes are zeros that nobody wrote. */
export interface SparseTensor {
  readonly shape: readonly number[];
  /** Integers that the tensor begins with. */
  readonly first?: readonly number[];
}

/** Write a safetensors file of I32 tensors. */
export function writeSparse(
  file: string,
  tensors: { readonly [name: string]: SparseTensor },
): void {
  const entries = Object.entries(tensors);
  const head = safetensorsHead(
    entries.map(([name, { shape }]) => [name, { dtype: "i32", shape }]),
  );
  const descriptor = openSync(file, "w");
  writeSync(descriptor, head);
  let at = head.length;
  for (const [, { shape, first = [] }] of entries) {
    writeSync(descriptor, Int32Array.from(first), 0, 4 * first.length, at);
    at += shape.reduce((bytes, size) => bytes * size, 4);
  }
  closeSync(descriptor);
  truncateSync(file, at);
}
