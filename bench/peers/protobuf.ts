/** A minimal writer of the protocol buffers wire format. */

/** A part of a message: a field's tag and its value. */
export type Field = readonly Uint8Array[];

/** An integer field. */
export function integer(number: number, value: number): Field {
  return [varint(number << 3), varint(value)];
}

/** A field of 32 bits, as a float. */
export function float(number: number, value: number): Field {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setFloat32(0, value, true);
  return [varint(number << 3 | 5), bytes];
}

/** A field of bytes. */
export function bytes(number: number, value: Uint8Array): Field {
  return [varint(number << 3 | 2), varint(value.length), value];
}

/** A field of text. */
export function text(number: number, value: string): Field {
  return bytes(number, new TextEncoder().encode(value));
}

/** A field that is a message of its own. */
export function message(number: number, fields: readonly Field[]): Field {
  const parts = fields.flat();
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return [varint(number << 3 | 2), varint(length), ...parts];
}

// Negative numbers are written as 64-bit numbers.
function varint(value: number): Uint8Array {
  const digits: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 0x7fn; rest >>= 7n) digits.push(Number(rest & 0x7fn) | 0x80);
  return Uint8Array.of(...digits, Number(rest));
}
