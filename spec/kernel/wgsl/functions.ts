/** Functions of kernel trees in WGSL: built-in ones under their names there, and others that the module declares. */

import type { CallName } from "../tree.ts";

/** Functions whose WGSL name differs from that in the tree. */
const RENAMED: { readonly [fn in CallName]?: string } = {
  rsqrt: "inverseSqrt",
  roundF16: "round_f16",
  dot4I8: "dot4_i8",
  dot4U8I8: "dot4_u8_i8",
};

/** WGSL's built-in dot product of bytes, on devices that support it. */
export const DOT4_PACKED = "dot4I8Packed";

const DOT4_I8 = `fn dot4_i8(a: u32, b: u32) -> i32 {
  let left = vec4i(vec4u(a) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u);
  let right = vec4i(vec4u(b) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u);
  return dot(left, right);
}`;

const DOT4_U8_I8 = `fn dot4_u8_i8(a: u32, b: u32) -> i32 {
  let left = vec4i((vec4u(a) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u));
  let right = vec4i(vec4u(b) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u);
  return dot(left, right);
}`;

const LOOKUP16 =
  `fn lookup16(indices: u32, a: u32, b: u32, c: u32, d: u32) -> u32 {
  var table = vec4u(a, b, c, d);
  let at = (vec4u(indices) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(15u);
  let words = vec4u(table[at.x >> 2u], table[at.y >> 2u], table[at.z >> 2u], table[at.w >> 2u]);
  let bytes = (words >> ((at & vec4u(3u)) << vec4u(3u))) & vec4u(255u);
  return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}`;

/**
 * `quantizeToF16` may flush subnormal halves and leaves overflow undefined, so rounding (to nearest, ties to even,
 * overflow to infinity) is implemented on bits.
 */
const ROUND_F16 = `fn round_f16(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  let sign = bits & 0x80000000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) {
    return x;
  }
  if (magnitude >= 0x477ff000u) {
    return bitcast<f32>(sign | special_bits.x);
  }
  if (magnitude < 0x38800000u) {
    return round(x * 16777216.0f) * 5.9604644775390625e-8f;
  }
  let rounded = (magnitude + 0xfffu + ((magnitude >> 13u) & 1u)) & 0xffffe000u;
  return bitcast<f32>(sign | rounded);
}`;

/** Bits of infinity and of NaN, and none; a variable, because WGSL rejects both in constant expressions. */
const SPECIAL_BITS =
  "var<private> special_bits: vec3u = vec3u(0x7f800000u, 0x7fc00000u, 0u);";

/** Declared functions and variables, in order, with the names whose use requires them. */
const DECLARED: readonly (readonly [names: readonly string[], text: string])[] =
  [
    [["special_bits", "round_f16"], SPECIAL_BITS],
    [["round_f16"], ROUND_F16],
    [["dot4_i8"], DOT4_I8],
    [["dot4_u8_i8"], DOT4_U8_I8],
    [["lookup16"], LOOKUP16],
  ];

/** The name of a function. `packedDot`: the device has the built-in dot product of bytes. */
export function functionName(
  fn: CallName,
  { packedDot }: { readonly packedDot: boolean },
): string {
  return packedDot && fn === "dot4I8" ? DOT4_PACKED : RENAMED[fn] ?? fn;
}

/** Declarations of the functions and variables that the body of a kernel uses. */
export function declaredFunctions(body: string): readonly string[] {
  const used = new Set(body.match(/\w+/g));
  return DECLARED.flatMap(([names, text]) =>
    names.some((name) => used.has(name)) ? [text, ""] : []
  );
}
