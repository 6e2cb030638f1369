/** Names of registers in kernel trees, which have no arrays of variables. */

/** The name of a register in the tree: `sum1_2`. */
export function registerName(base: string, indices: readonly number[]): string {
  const last = base.charCodeAt(base.length - 1);
  return `${base}${last >= 48 && last <= 57 ? "_" : ""}${indices.join("_")}`;
}
