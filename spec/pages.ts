/**
 * Names for paged caches in plans: the axes of a state, `page within …`, and the page table `pages`, i32 [sequence,
 * block]. Layers with a window have separate pages, `pages_window_128`, which sequences free as they grow.
 */

export const [WITHIN, BLOCK] = ["within", "block"] as const;

/**
 * Names for states with snapshots: their first axis, the rows; the input with the table, i32 [sequence, 2]; and its
 * second axis: the row that the tokens of a sequence in a step continue from, and the row that they write.
 */
export const STATES = {
  row: "stateRow",
  input: "states",
  use: "stateUse",
} as const;

/**
 * Positions visible to a token: the last `window` ones, or those of its own `chunk`; without either, all earlier ones.
 */
export interface Seen {
  readonly window?: number | undefined;
  readonly chunk?: number | undefined;
}

/** The first position visible to a token at `position`. */
export function firstSeen({ window, chunk }: Seen, position: number): number {
  return Math.max(
    0,
    window === undefined ? 0 : position - window + 1,
    chunk === undefined ? 0 : position - position % chunk,
  );
}

/** Maximum number of pages with positions visible to a token. Undefined if it grows with the position. */
export function seenPages(
  { window, chunk }: Seen,
  size: number,
): number | undefined {
  const max = Math.min(window ?? Infinity, chunk ?? Infinity);
  return max === Infinity ? undefined : Math.ceil((max - 1) / size) + 1;
}

/** The page axis of layers that see the same positions, and the input with their table. */
export function pagesNames(
  seen: Seen,
): { readonly axis: string; readonly input: string } {
  const limits = (["window", "chunk"] as const).flatMap((name) =>
    seen[name] === undefined ? [] : [`_${name}_${seen[name]}`]
  ).join("");
  return { axis: `page${limits}`, input: `pages${limits}` };
}

/** Whether an axis is that of pages. */
export function isPageAxis(axis: string): boolean {
  return seenThrough(axis.replace(/^page/, "pages")) !== undefined;
}

/** The visible positions of the layers whose page table is an input. Undefined if it is no page table. */
export function seenThrough(input: string): Seen | undefined {
  const found = /^pages(?:_window_(\d+))?(?:_chunk_(\d+))?$/.exec(input);
  if (!found) return undefined;
  const [window, chunk] = found.slice(1)
    .map((text) => text === undefined ? undefined : Number(text));
  return { window, chunk };
}
