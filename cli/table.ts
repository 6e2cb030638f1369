/** Text tables with aligned columns. */

/** Aligns the first column to the left and the others to the right, or all to the left. */
export function formatTable(
  rows: readonly (readonly string[])[],
  align: "left" | "right" = "right",
): string[] {
  const widths = rows[0]!.map((_, i) =>
    Math.max(...rows.map((row) => row[i]!.length))
  );
  return rows.map((row) =>
    row.map((cell, i) =>
      i === 0 || align === "left"
        ? cell.padEnd(widths[i]!)
        : cell.padStart(widths[i]!)
    ).join("  ").trimEnd()
  );
}
