/** Class `safetensors`: a mutated header or file is rejected, or its tensors cover all bytes of the file. */

import fc from "fast-check";
import {
  openSafetensors,
  readTensor,
  writeSafetensors,
} from "../../runtime/mod.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";
import { type JsonChange, jsonChanges, mutateJson } from "./json_mutant.ts";
import { acceptedOrRefused, checkRange } from "./refusal.ts";

type Case =
  | { readonly changes: readonly JsonChange[] }
  | {
    readonly edits: readonly { readonly at: number; readonly byte: number }[];
  }
  | { readonly length: number };

const FILE = writeSafetensors({
  a: { dtype: "f32", shape: [2, 3], data: Float32Array.of(1, 2, 3, 4, 5, 6) },
  "b.c": { dtype: "i32", shape: [4], data: Int32Array.of(1, 2, 3, 4) },
  s: { dtype: "u32", shape: [], data: Uint32Array.of(9) },
}, { format: "pt" });
const HEAD = Number(new DataView(FILE.buffer).getBigUint64(0, true));
const HEADER = JSON.parse(
  new TextDecoder().decode(FILE.subarray(8, 8 + HEAD)),
) as object;

function bytesOf(of: Case): Uint8Array {
  if ("length" in of) return FILE.slice(0, of.length % FILE.length);
  if ("edits" in of) {
    const bytes = FILE.slice();
    for (const { at, byte } of of.edits) bytes[at % (8 + HEAD)] = byte;
    return bytes;
  }
  const text = new TextEncoder().encode(
    JSON.stringify(mutateJson(HEADER, of.changes)),
  );
  const bytes = new Uint8Array(8 + text.length + FILE.length - 8 - HEAD);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(FILE.subarray(8 + HEAD), 8 + text.length);
  return bytes;
}

/** Mutants of files of tensors. */
export function safetensorsClass(): FuzzClass<Case> {
  return {
    name: "safetensors",
    count: 50_000,
    cases: fc.oneof(
      { arbitrary: fc.record({ changes: jsonChanges }), weight: 4 },
      {
        arbitrary: fc.record({
          edits: fc.array(
            fc.record({ at: fc.nat(4096), byte: fc.nat(255) }),
            { minLength: 1, maxLength: 4 },
          ),
        }),
        weight: 4,
      },
      { arbitrary: fc.record({ length: fc.nat(4096) }), weight: 1 },
    ),
    judge: async (of) => {
      const bytes = bytesOf(of);
      return await acceptedOrRefused("A file", async () => {
        const tensors = await openSafetensors([{
          name: "file",
          size: bytes.length,
          read: (from, length) => {
            checkRange(bytes, from, length);
            return Promise.resolve(bytes.slice(from, from + length));
          },
        }]);
        let covered = 0;
        for (const entry of tensors.values()) {
          covered += entry.bytes;
          await readTensor(entry);
        }
        const head = Number(new DataView(bytes.buffer).getBigUint64(0, true));
        if (covered === bytes.length - 8 - head) return;
        throw new Finding(`Tensors have ${covered} bytes of ${bytes.length}`);
      });
    },
    close: () => Promise.resolve(),
  };
}
