/** The GGUF types that can be written. */

import {
  type BlockType,
  GGUF_TYPES,
  isBlockType,
  type PlainType,
} from "../gguf/blocks.ts";
import { DataError } from "../../spec/errors.ts";

/** A type with its number. */
export type NumberedType = (PlainType | BlockType) & {
  readonly number: number;
};

/** The type of integers, which are never quantized. */
export const INTEGERS: NumberedType = {
  name: "I32",
  dtype: "I32",
  bytes: 4,
  number: 26,
};

/** The types by name. */
export const WRITTEN_TYPES: ReadonlyMap<string, NumberedType> = new Map(
  Object.entries(GGUF_TYPES).flatMap(([number, type]) =>
    isBlockType(type) && !type.encode || type.name === INTEGERS.name
      ? []
      : [[type.name, { ...type, number: Number(number) }] as const]
  ),
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
