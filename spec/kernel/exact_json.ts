/** JSON of what kernels are made from, as a key: equal only where kernels are. */

/** What JSON has no difference for: 0 and -0 of f32, and what is not finite. */
const INEXACT = /(?<!"type":"u32",)"value":0[,}]|null/;

/** JSON in which -0 and infinities differ from other values of constants. */
export function exactJson(value: unknown): string {
  const json = JSON.stringify(value);
  // A replacer is called for everything, and seldom needed.
  return INEXACT.test(json) ? JSON.stringify(value, exactly) : json;
}

/** A replacer for JSON, which has neither -0 nor infinities. */
function exactly(_key: string, value: unknown): unknown {
  if (Object.is(value, -0)) return "-0";
  return value === Infinity || value === -Infinity ? String(value) : value;
}
