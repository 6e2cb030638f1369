/** Which keys a query of causal attention sees: those up to its own position, less what a window or a chunk hides. */

import { type Hole, type KernelText, wgsl } from "../../../spec/kernel/text.ts";

/** What limits the keys that are seen. */
export interface SeenKeys {
  /** Only the last `window` positions, the token's own included. */
  readonly window?: number;
  /** Only positions of the token's own block of so many. */
  readonly chunk?: number;
}

/** The first position that a token sees, from its own position and the next; undefined: it sees all before it. */
export function firstSeen(
  { window, chunk }: SeenKeys,
  { own, next }: { readonly own: Hole; readonly next: Hole },
): KernelText | undefined {
  const ofWindow = wgsl`max(${next}, ${window}) - ${window}`;
  const ofChunk = wgsl`${own} / ${chunk} * ${chunk}`;
  if (chunk === undefined) return window === undefined ? undefined : ofWindow;
  return window === undefined ? ofChunk : wgsl`max(${ofWindow}, ${ofChunk})`;
}
