/** The GGUF types that can be written. */

import {
  type BlockType,
  GGUF_TYPES,
  isBlockType,
  type PlainType,
} from "../gguf/blocks.ts";
import type { BlockName } from "../../spec/weights/blocks.ts";
import { DataError } from "../../spec/errors.ts";

/** A type with its number. */
export type NumberedType = (PlainType | BlockType) & {
  readonly number: number;
};

/** The number of the type of integers, which are never quantized. */
const I32 = 26;

/** The type of integers. */
export const INTEGERS: NumberedType = { ...GGUF_TYPES[I32]!, number: I32 };

/** The types of weights by name. */
export const WRITTEN_TYPES: ReadonlyMap<string, NumberedType> = new Map(
  Object.entries(GGUF_TYPES).flatMap(([key, type]) => {
    const number = Number(key);
    return number === I32 || isBlockType(type) && !type.encode
      ? []
      : [[type.name, { ...type, number }] as const];
  }),
);

/** Returns a type by name. Throws DataError for a type that cannot be written. */
export function writtenType(name: string): NumberedType {
  const type = WRITTEN_TYPES.get(name.toUpperCase());
  if (type) return type;
  throw new DataError(
    `Cannot quantize to type '${name}'. Known ones are ${
      [...WRITTEN_TYPES.keys()].join(", ")
    }`,
  );
}

/** Returns the type for rows of `columns` elements: the alternative type if blocks do not divide them. */
export function fittingType(type: NumberedType, columns: number): NumberedType {
  return isBlockType(type) && columns % type.elements !== 0
    ? fittingType(writtenType(type.instead!), columns)
    : type;
}

/** Returns the type of blocks, which may be one that is only copied. */
export function blockType(name: BlockName): NumberedType {
  const [number, type] = Object.entries(GGUF_TYPES)
    .find(([, type]) => isBlockType(type) && type.block === name)!;
  return { ...type, number: Number(number) };
}
