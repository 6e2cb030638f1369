/** Parameters of primitives that name axes. */

/** Parameters that name axes of operands or of the result. */
const AXIS_PARAMETERS: ReadonlySet<string> = new Set([
  "over",
  "from",
  "to",
  "axis",
  "axes",
  "into",
  "tokens",
  "leadingGroup",
  "choice",
  "token",
  "head",
  "dim",
  "valueDim",
  "kvHead",
  "context",
]);

/** Returns the parameters with every named axis renamed. */
export function renameAxes<T extends object>(
  params: T,
  rename: (axis: string) => string,
): T {
  return Object.fromEntries(
    Object.entries(params).map(([key, value]: [string, unknown]) => {
      if (!AXIS_PARAMETERS.has(key)) return [key, value];
      if (typeof value === "string") return [key, rename(value)];
      return [key, Array.isArray(value) ? value.map(rename) : value];
    }),
  ) as T;
}
