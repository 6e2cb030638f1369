/** Files of gigabytes that use almost no disk space. */

import { closeSync, openSync, truncateSync, writeSync } from "node:fs";
import { safetensorsHead } from "../../runtime/mod.ts";

/** Tensor of zeros that are not written to disk. */
export interface SparseTensor {
  readonly shape: readonly number[];
  /** First elements of the tensor. */
  readonly first?: readonly number[];
}

/** Writes a safetensors file of I32 tensors. */
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
