/** The address of the page: a step, a rank, or search words. */

import type { PlanView } from "../plan_view.ts";
import { search } from "../search.ts";

/** A location on the page. */
export interface Address {
  /** Indices of a program and of a step in it. */
  readonly program: number;
  readonly step?: number;
  /** A rank whose bundle is open. */
  readonly rank?: number;
}

/** Reads the part after `#`. An invalid address means the whole page. */
export function readAddress(view: PlanView, hash: string): Address {
  const text = decoded(hash.replace(/^#/, ""));
  const rank = /^(?:rank|open)\/(\d+)$/.exec(text);
  if (rank && Number(rank[1]) < view.plan.ranks) {
    return { program: 0, rank: Number(rank[1]) };
  }
  for (
    const [program, { program: { name }, steps }] of view.programs.entries()
  ) {
    if (!text.startsWith(`${name}/`)) continue;
    const rest = text.slice(name.length + 1);
    const step = /^\d+$/.test(rest)
      ? Number(rest)
      : Number(/\d+$/.exec(search(view, rest)[0]?.link ?? "")?.[0] ?? NaN);
    if (step < steps.length) return { program, step };
  }
  return { program: 0 };
}

/** Returns invalid encodings unchanged. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
