/** Addresses inside the page: what is behind `#`. */

import type { ProgramView } from "./plan_view.ts";

/** The address of a step. */
export function stepLink({ program }: ProgramView, index: number): string {
  return `${encodeURIComponent(program.name)}/${index}`;
}
