/**
 * What plans call the pages of caches: the axes of a state, `page within …`, and the table `pages`, i32 [sequence, block].
 * Layers that see the last positions only have pages of their own, `pages_window_128`, which sequences give back as they grow.
 */

export const [WITHIN, BLOCK] = ["within", "block"] as const;

/** The positions that a token sees: the last `window` ones, or those of its own `chunk`; without either, all before it. */
export interface Seen {
  readonly window?: number | undefined;
  readonly chunk?: number | undefined;
}

/** The first position that a token at `position` sees. */
export function firstSeen({ window, chunk }: Seen, position: number): number {
  return Math.max(
    0,
    window === undefined ? 0 : position - window + 1,
    chunk === undefined ? 0 : position - position % chunk,
  );
}

/** Pages that have all that a token sees, wherever it is; undefined where that grows with its position. */
export function seenPages(
  { window, chunk }: Seen,
  size: number,
): number | undefined {
  const most = Math.min(window ?? Infinity, chunk ?? Infinity);
  return most === Infinity ? undefined : Math.ceil((most - 1) / size) + 1;
}

/** The axis of pages of layers that see the same positions, and the input that is their table. */
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

/** What layers see whose table an input is; undefined where it is none. */
export function seenThrough(input: string): Seen | undefined {
  const found = /^pages(?:_window_(\d+))?(?:_chunk_(\d+))?$/.exec(input);
  if (!found) return undefined;
  const [window, chunk] = found.slice(1)
    .map((text) => text === undefined ? undefined : Number(text));
  return { window, chunk };
}
