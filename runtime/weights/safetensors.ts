/** Safetensors files: a checked directory of their tensors; reading; writing. */

import { quantity } from "../../spec/quantity.ts";
import { concatenated } from "../../spec/concatenated.ts";
import { DataError } from "../../spec/errors.ts";
import { isLfsPointer, LFS_POINTER } from "../../spec/lfs_pointer.ts";
import type { PackedDType } from "../../spec/weights/packed.ts";
import { shown } from "../../spec/shown.ts";
import { bytesOf, elementCount, type HostTensor } from "../host_tensor.ts";
import { type FileSource, readExactly } from "./file_source.ts";
import { widen } from "../half.ts";
import { parseHeader } from "./safetensors_header.ts";

export type { FileSource } from "./file_source.ts";

/** Location of a tensor. */
export interface TensorEntry {
  readonly name: string;
  /** Dtype in the file: `F32`, `BF16`, `I64`, … */
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly source: FileSource;
  /** First byte in the file. */
  readonly offset: number;
  readonly bytes: number;
  /** For a view: its source tensors in the file. */
  readonly of?: readonly string[];
  /** For a view of an entire matrix: the packing of its elements and scales, which are views too. */
  readonly packed?: PackedDType;
}

/** Tensors by name. */
export type TensorDirectory = ReadonlyMap<string, TensorEntry>;

/** Maximum bytes of a header, the limit of the format. */
const LONGEST_HEADER = 100_000_000;

/** The tensors of one file or of the files of a checkpoint. */
export async function openSafetensors(
  sources: readonly FileSource[],
): Promise<TensorDirectory> {
  const directory = new Map<string, TensorEntry>();
  for (const source of sources) {
    for (const entry of await readHeader(source)) {
      const other = directory.get(entry.name);
      if (other) {
        throw new DataError(
          `Cannot open '${source.name}': its tensor '${
            shown(entry.name)
          }' is also in '${other.source.name}'. Remove one of them`,
        );
      }
      directory.set(entry.name, entry);
    }
  }
  return directory;
}

async function readHeader(source: FileSource): Promise<TensorEntry[]> {
  const refuse = (state: string): never => {
    throw new DataError(
      `Cannot open '${source.name}': ${state}. Get the file again`,
    );
  };
  if (source.size < 8) {
    refuse(
      `it has ${
        quantity(source.size, "byte")
      } and a safetensors file begins with 8 bytes of header length`,
    );
  }
  const first = await readExactly(source, 0, 8);
  const length = Number(
    new DataView(first.buffer, first.byteOffset, 8).getBigUint64(0, true),
  );
  if (isLfsPointer(new TextDecoder().decode(first))) {
    refuse(`it ${LFS_POINTER}`);
  }
  if (length > LONGEST_HEADER) {
    refuse(
      `its header claims ${length} bytes, more than the ${LONGEST_HEADER} that the format allows`,
    );
  }
  if (8 + length > source.size) {
    refuse(
      `its header claims ${length} bytes and the file has ${source.size}`,
    );
  }
  const header = await readExactly(source, 8, length);
  return parseHeader(header, source.size - 8 - length, refuse)
    .map(({ begin, ...tensor }) => ({
      ...tensor,
      source,
      offset: 8 + length + begin,
    }));
}

/** Reads a tensor. 16-bit floats are widened; 64-bit and short integers become i32. */
export async function readTensor(entry: TensorEntry): Promise<HostTensor> {
  const { name, shape, source, offset, bytes, dtype } = entry;
  // A copy, so that typed arrays of any width can view it.
  const { buffer } = (await readExactly(source, offset, bytes)).slice();
  const tensor = (data: HostTensor["data"]): HostTensor => ({
    dtype: data instanceof Float32Array
      ? "f32"
      : data instanceof Int32Array
      ? "i32"
      : "u32",
    shape,
    data,
  });
  const integers = (values: Iterable<number>) =>
    tensor(Int32Array.from(values));
  switch (dtype) {
    case "F32":
      return tensor(new Float32Array(buffer));
    case "I32":
      return tensor(new Int32Array(buffer));
    case "U32":
      return tensor(new Uint32Array(buffer));
    case "F16":
      return tensor(widen("f16", new Uint16Array(buffer)));
    case "BF16":
      return tensor(widen("bf16", new Uint16Array(buffer)));
    case "U8":
    case "BOOL":
      return integers(new Uint8Array(buffer));
    case "I8":
      return integers(new Int8Array(buffer));
    case "I16":
      return integers(new Int16Array(buffer));
    case "U16":
      return integers(new Uint16Array(buffer));
    case "I64":
    case "U64": {
      const wide = dtype === "I64"
        ? new BigInt64Array(buffer)
        : new BigUint64Array(buffer);
      const narrow = new Int32Array(wide.length);
      for (const [i, value] of wide.entries()) {
        narrow[i] = Number(value);
        if (BigInt(narrow[i]) !== value) {
          throw new DataError(
            `Cannot read tensor '${
              shown(name)
            }' of '${source.name}': element ${i} is ${value}, which does not fit in 32 bits. Store it as I32`,
          );
        }
      }
      return tensor(narrow);
    }
    default:
      throw new DataError(
        `Cannot read tensor '${
          shown(name)
        }' of '${source.name}': its dtype is ${dtype}. Store it as F32, F16, BF16, I32 or I64`,
      );
  }
}

/** Writes a safetensors file of tensors in the given order. */
export function writeSafetensors(
  tensors: { readonly [name: string]: HostTensor },
  metadata?: { readonly [key: string]: string },
): Uint8Array {
  return concatenated(safetensorsParts(tensors, metadata));
}

/** The same file as its header and the bytes of each tensor, without copies. */
function safetensorsParts(
  tensors: { readonly [name: string]: HostTensor },
  metadata?: { readonly [key: string]: string },
): Uint8Array[] {
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    if (data.length === elementCount(shape)) continue;
    throw new DataError(
      `Cannot write tensor '${name}': it has ${
        quantity(data.length, "element")
      } and its shape [${shape.join(", ")}] has ${
        elementCount(shape)
      }. Make them equal`,
    );
  }
  return [
    safetensorsHead(Object.entries(tensors), metadata),
    ...Object.values(tensors).map(({ data }) => bytesOf(data)),
  ];
}

/** Bytes per element in a written file. */
const WIDTHS = {
  f32: 4,
  i32: 4,
  u32: 4,
  f16: 2,
  bf16: 2,
  u8: 1,
  f8_e4m3: 1,
} as const;

/** The bytes of a file before its tensors, which follow in the same order. */
export function safetensorsHead(
  tensors: Iterable<
    readonly [name: string, Pick<FileTensor, "dtype" | "shape">]
  >,
  metadata?: { readonly [key: string]: string },
): Uint8Array {
  const header: [string, unknown][] = metadata
    ? [["__metadata__", metadata]]
    : [];
  let end = 0;
  for (const [name, { dtype, shape }] of tensors) {
    const begin = end;
    end += WIDTHS[dtype] * elementCount(shape);
    header.push([name, {
      dtype: dtype.toUpperCase(),
      shape,
      data_offsets: [begin, end],
    }]);
  }
  const text = new TextEncoder().encode(
    JSON.stringify(Object.fromEntries(header)),
  );
  // Spaces after the header align the data.
  const length = Math.ceil(text.length / 8) * 8;
  const head = new Uint8Array(8 + length).fill(0x20, 8);
  new DataView(head.buffer).setBigUint64(0, BigInt(length), true);
  head.set(text, 8);
  return head;
}

/** A tensor in a file. */
export interface FileTensor {
  readonly dtype: keyof typeof WIDTHS;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView;
}

/** Tensors in memory as a directory. `where`: their source for messages. */
export function tensorsInMemory(
  tensors: { readonly [name: string]: FileTensor },
  where: string,
): TensorDirectory {
  return new Map(
    Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
      const bytes = bytesOf(data);
      const source = {
        name: where,
        size: bytes.length,
        read: (offset: number, length: number) =>
          Promise.resolve(bytes.subarray(offset, offset + length)),
      };
      return [name, {
        name,
        dtype: dtype.toUpperCase(),
        shape,
        source,
        offset: 0,
        bytes: bytes.length,
      }];
    }),
  );
}
