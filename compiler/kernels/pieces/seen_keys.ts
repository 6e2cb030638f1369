/**
 * Visible keys of a query in causal attention: those up to its position, without those hidden by a window or a chunk.
 */

import type { Seen } from "../../../spec/pages.ts";
import {
  type Hole,
  type KernelText,
  wgsl,
} from "../../../spec/kernel/text/text.ts";

/**
 * `firstSeen` of `spec/pages.ts` as text, from a token's position and the next. Undefined: all earlier positions are
 * visible.
 */
export function firstSeenText(
  { window, chunk }: Seen,
  { position, next }: { readonly position: Hole; readonly next: Hole },
): KernelText | undefined {
  const ofWindow = wgsl`max(${next}, ${window}) - ${window}`;
  const ofChunk = wgsl`${position} / ${chunk} * ${chunk}`;
  if (chunk === undefined) return window === undefined ? undefined : ofWindow;
  return window === undefined ? ofChunk : wgsl`max(${ofWindow}, ${ofChunk})`;
}
