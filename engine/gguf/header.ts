/** The header of a GGUF file: its keys, and the locations of its tensors. */

import { DataError } from "../../spec/errors.ts";
import { isLfsPointer, LFS_POINTER } from "../../spec/lfs_pointer.ts";
import { shown } from "../../spec/shown.ts";
import type { OpenFile } from "../files.ts";
import {
  type BlockType,
  GGUF_TYPES,
  isBlockType,
  type PlainType,
} from "./blocks.ts";

/** Keys of a file. 64-bit numbers are bigints. */
export type GgufKeys = { readonly [key: string]: unknown };

/** A tensor of a file, outermost axis first. */
export interface GgufTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: PlainType | BlockType;
  /** First byte in the file. */
  readonly offset: number;
  readonly bytes: number;
}

/** Header of a file. */
export interface GgufHeader {
  readonly keys: GgufKeys;
  readonly tensors: readonly GgufTensor[];
}

/** Maximum bytes of a header that are read at once. */
const PIECE = 64 << 20;

/** Serves bytes of a file as responses to range requests, for the parser. */
function rangesOf(file: OpenFile): typeof fetch {
  return async (_, init) => {
    const range = new Headers(init?.headers).get("range") ?? "";
    const [, from = "0", to] = /^bytes=(\d+)-(\d+)?$/.exec(range) ?? [];
    const begin = Math.min(Number(from), file.size);
    const last = Math.min(Number(to ?? Infinity), begin + PIECE, file.size - 1);
    const bytes = await file.read(begin, Math.max(0, last + 1 - begin));
    return new Response(bytes.slice(), { status: 206 });
  };
}

/** Reads a header. Throws DataError for a damaged one, and for an unsupported tensor type. */
export async function readGguf(
  path: string,
  file: OpenFile,
): Promise<GgufHeader> {
  let parsed;
  // Loaded on demand: no other command waits for it.
  const { gguf, GGMLQuantizationType: names } = await import(
    "@huggingface/gguf"
  );
  try {
    parsed = await gguf("https://file/model.gguf", { fetch: rangesOf(file) });
  } catch (error) {
    const start = await file.read(0, Math.min(8, file.size));
    const state = isLfsPointer(new TextDecoder().decode(start))
      ? `it ${LFS_POINTER}`
      : `its header is damaged, ${
        shown(error instanceof Error ? error.message : String(error))
          .replace(/[.\s]+$/, "")
      }`;
    throw new DataError(`Cannot open '${path}': ${state}. Get the file again`);
  }
  const dataOffset = Number(parsed.tensorDataOffset);
  // The parser reads zeros past the end of a file.
  if (parsed.tensorInfoByteRange[1] > file.size) {
    throw new DataError(
      `Cannot open '${path}': its header is damaged, it ends at byte ${
        parsed.tensorInfoByteRange[1]
      } and the file has ${file.size}. Get the file again`,
    );
  }
  const tensors = parsed.tensorInfos.map((info): GgufTensor => {
    const type = GGUF_TYPES[info.dtype];
    if (type === undefined) {
      throw new DataError(
        `Cannot open '${path}': tensor '${shown(info.name)}' has type ${
          names[info.dtype] ?? info.dtype
        }, which is not read. Use a file with types ${
          Object.values(GGUF_TYPES).map(({ name }) => name).join(", ")
        }`,
      );
    }
    const shape = info.shape.map(Number).reverse();
    const elements = shape.reduce((n, size) => n * size, 1);
    const isEmpty = shape.some((size) => size === 0);
    const bytes = isBlockType(type)
      ? elements / type.elements * type.bytes
      : elements * type.bytes;
    const offset = dataOffset + Number(info.offset);
    const hasFullBlocks = !isBlockType(type) ||
      shape.at(-1)! % type.elements === 0;
    if (
      isEmpty || !hasFullBlocks || !Number.isSafeInteger(bytes) ||
      offset + bytes > file.size
    ) {
      throw new DataError(
        `Cannot open '${path}': tensor '${
          shown(info.name)
        }' does not fit in the file of ${file.size} bytes. Get the file again`,
      );
    }
    return { name: info.name, shape, type, offset, bytes };
  });
  return { keys: { ...parsed.metadata }, tensors };
}

/** An integer key. Undefined if it is missing. */
export function numberOf(keys: GgufKeys, key: string): number | undefined {
  const value = keys[key];
  return typeof value === "number" || typeof value === "bigint"
    ? Number(value)
    : undefined;
}

/** A number or a boolean. Undefined if it is missing. */
export function valueOf(
  keys: GgufKeys,
  key: string,
): number | boolean | undefined {
  const value = keys[key];
  return typeof value === "boolean" ? value : numberOf(keys, key);
}

/** Returns the number of layers, excluding multi-token prediction (MTP) layers. NaN without `block_count`. */
export function layerCount(architecture: string, keys: GgufKeys): number {
  const number = (key: string) => numberOf(keys, `${architecture}.${key}`);
  return (number("block_count") ?? NaN) - (number("nextn_predict_layers") ?? 0);
}

/** An integer key, or the largest integer of a list by layer. Undefined if it is missing. */
export function maxOf(keys: GgufKeys, key: string): number | undefined {
  return Array.isArray(keys[key])
    ? numbersOf(keys, key).reduce((most, value) => Math.max(most, value), 0)
    : numberOf(keys, key);
}

/** A list of numbers, such as one for each layer. Empty if the file has none. */
export function numbersOf(keys: GgufKeys, key: string): number[] {
  const list = keys[key];
  return Array.isArray(list) ? list.map(Number) : [];
}
