/** Shardings: how the elements of a value are divided among the ranks of the mesh. */

/** Axis -> the mesh axes it is sharded over, major first. Missing axes are replicated. */
export interface Over {
  readonly [axis: string]: readonly string[];
}

/**
 * The sharding of a value. Along the mesh axes in `unreduced`, ranks have terms of a sum, and the value is the sum.
 * Along all other mesh axes that shard no axis, the value is replicated.
 */
export interface Sharding {
  readonly over: Over;
  readonly unreduced: readonly string[];
  /** The pipeline stage whose ranks have the value. Undefined: all ranks have it. */
  readonly stage?: number | undefined;
}

/** Replicated on every rank. */
export const REPLICATED: Sharding = { over: {}, unreduced: [] };

/** The mesh axes that an axis is sharded over. */
export function overOf(
  { over }: Pick<Sharding, "over">,
  axis: string,
): readonly string[] {
  return Object.hasOwn(over, axis) ? over[axis]! : [];
}

/** Whether two lists of mesh axes are equal. */
export function sameOver(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((name, i) => name === b[i]);
}

/** Whether `a` begins with `b`. */
export function extendsOver(
  a: readonly string[],
  b: readonly string[],
): boolean {
  return b.every((name, i) => name === a[i]);
}

/** Whether `a` is a subsequence of the mesh axes `b`. */
export function isWithinOver(
  a: readonly string[],
  b: readonly string[],
): boolean {
  return sameOver(a, b.filter((name) => a.includes(name)));
}

/** Removes replicated axes. */
export function tidyOver(over: Over): Over {
  return Object.fromEntries(
    Object.entries(over).filter(([, names]) => names.length > 0),
  );
}

/** The local name of an axis: `head/tp`, `token/dp+ep`, or `embed` if it is replicated. */
export function localName(axis: string, over: readonly string[]): string {
  return over.length === 0 ? axis : `${axis}/${over.join("+")}`;
}

/** `token/ep embed {unreduced tp}` */
export function formatSharding(
  axes: readonly string[],
  sharding: Sharding,
): string {
  const text = axes.map((axis) => localName(axis, overOf(sharding, axis)));
  const { unreduced, stage } = sharding;
  return [
    ...text,
    ...unreduced.length > 0 ? [`{unreduced ${unreduced.join("+")}}`] : [],
    ...stage === undefined ? [] : [`on stage ${stage}`],
  ].join(" ");
}
