/** Windows of a text: each token is predicted once, from the preceding tokens in its window. */

/** Tokens `from` to `to` of a text; those before `scored` are context only. */
export interface Window {
  readonly from: number;
  readonly scored: number;
  readonly to: number;
}

/** Sizes of windows, in tokens. */
export interface WindowSizes {
  readonly context: number;
  /** Tokens between the starts of windows, at most `context`. */
  readonly stride: number;
}

/** The windows of a text of `length` tokens. The first token has no context and is not scored. */
export function windowsOf(
  length: number,
  { context, stride }: WindowSizes,
): Window[] {
  const windows: Window[] = [];
  let scored = 1;
  for (let from = 0; scored < length; from += stride) {
    const to = Math.min(from + context, length);
    // Windows that do not overlap lack the context of their first token.
    windows.push({ from, scored: Math.max(scored, from + 1), to });
    scored = to;
  }
  return windows;
}
