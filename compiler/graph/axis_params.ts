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

/** Returns the parameters with every named axis renamed; the same object if none changes. */
export function renameAxes<T extends object>(
  params: T,
  rename: (axis: string) => string,
): T {
  const renamed: { [name: string]: unknown } = {};
  for (const [name, value] of Object.entries(params)) {
    if (!AXIS_PARAMETERS.has(name)) continue;
    const now = renamedIn(value, rename);
    if (now !== value) renamed[name] = now;
  }
  return Object.keys(renamed).length === 0 ? params : { ...params, ...renamed };
}

/** An axis or a list of axes after renaming; the same value if none changes. */
function renamedIn(value: unknown, rename: (axis: string) => string): unknown {
  if (typeof value === "string") return rename(value);
  if (!Array.isArray(value)) return value;
  const axes = value.map(rename);
  return axes.every((axis, i) => axis === value[i]) ? value : axes;
}
