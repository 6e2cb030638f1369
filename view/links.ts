/** Addresses inside the page: the part after `#`. */

import type { ProgramView } from "./plan_view.ts";

/** Returns the address of a step. */
export function stepLink({ program }: ProgramView, index: number): string {
  return `${encodeURIComponent(program.name)}/${index}`;
}
