/** Returns a number with its unit, such as `1 row` or `2 rows`. The plural of `unit` ends in s. */
export function quantity(count: number, unit: string): string {
  return `${count} ${unit}${count === 1 ? "" : "s"}`;
}
