/** Bounds of a plan: tokens per step, sequences, positions. */

import type { ChoosePages, Pages } from "../compiler/mod.ts";
import type { Bounds } from "../models/mod.ts";
import { meshRoles, type MeshSizes } from "../spec/mesh.ts";
import { EXACT } from "../spec/numerics.ts";
import { sum } from "../spec/sum.ts";

/** Default tokens per step; longer prompts are fed in several steps. */
const STEP_TOKENS = 512;

/** Requirements of a run, if known. */
export interface Need {
  readonly tokens: number;
  readonly sequences: number;
  readonly context: number;
  /**
   * Maximum positions of each sequence, including new tokens: the caches are then paged, with as many pages as needed.
   */
  readonly lengths?: readonly number[];
}

/** Limits of the positions of a sequence. */
export interface ContextLimits {
  /** Positions that the model was trained for. */
  readonly maxPositions: number;
  /** Its ranks can share the positions of chosen bounds, if the model has enough. Default: one rank. */
  readonly mesh?: MeshSizes | undefined;
}

/** The unit of positions that the ranks of a mesh can share: a block of keys for each. 1 if they share none. */
function positionsUnit(mesh: MeshSizes): number {
  const ranks = Object.entries(mesh).reduce(
    (n, [name, size]) => meshRoles(name).includes("context") ? n * size : n,
    1,
  );
  return ranks === 1 ? 1 : ranks * EXACT.block;
}

/**
 * The given bounds, else sufficient ones, rounded up to powers of two so that similar runs share kernels. Positions,
 * which cost memory even if unused, are rounded up by at most an eighth.
 */
export function chooseBounds(
  need: Need,
  given: Partial<Bounds>,
  { maxPositions, mesh = {} }: ContextLimits,
): Bounds {
  const chosen = Math.min(
    maxPositions,
    eighthsOfPower(Math.max(need.context, 256)),
  );
  const multiple = positionsUnit(mesh);
  const rounded = Math.ceil(chosen / multiple) * multiple;
  return {
    maxTokens: given.maxTokens ??
      Math.min(STEP_TOKENS, powerOfTwo(Math.max(need.tokens, 64))),
    maxSequences: given.maxSequences ?? powerOfTwo(need.sequences),
    maxContext: given.maxContext ??
      (rounded <= maxPositions ? rounded : chosen),
  };
}

/** Bounds of a plan for unknown use. */
export function defaultBounds(
  given: Partial<Bounds>,
  limits: ContextLimits,
): Bounds {
  return chooseBounds(
    {
      tokens: STEP_TOKENS,
      sequences: 8,
      context: Math.min(limits.maxPositions, 4096),
    },
    given,
    limits,
  );
}

/** Positions per page: as many as attention looks up at once, or fewer for short sequences, with one lookup each. */
const [PAGE, SHORT_PAGE] = [32, 4] as const;

/** Acceptable empty fraction of a sequence: half of its last page on average. */
const EMPTY = 0.07;

/**
 * Pages per rank for a series of sequences, each up to its maximum length, sharded over `groupSize` ranks. Sequences
 * that end early leave pages to later ones.
 */
export function choosePages(
  lengths: readonly number[],
  { maxSequences, maxContext }: Bounds,
  groupSize: number,
): Pages {
  const size = pageSize(lengths);
  const pages = lengths.map((length) =>
    Math.ceil(Math.min(length, maxContext) / size)
  );
  const each = Math.ceil(maxSequences / groupSize);
  const max = maxTogether(pages, { window: maxSequences, each });
  // A sequence may have all positions, whatever is known of it.
  return {
    count: Math.max(max, Math.ceil(maxContext / size)),
    size,
  };
}

/** Pages for a series of sequences, by the ranks that share sequences. */
export function pagesFor(
  lengths: readonly number[],
  bounds: Bounds,
): ChoosePages {
  return (groupSize, positions) =>
    choosePages(lengths, { ...bounds, maxContext: positions }, groupSize);
}

/**
 * Pages for steps with `perSequence` next tokens of each sequence. With speculation, these are several, and there are
 * snapshots for the states that sequences hold, besides those of prefixes.
 */
export function withHeldStates(
  pages: Pages | ChoosePages,
  { maxSequences, perSequence = 1 }: Bounds & {
    readonly perSequence?: number | undefined;
  },
): Pages | ChoosePages {
  if (perSequence === 1) return pages;
  return (groupSize, positions) => ({
    snapshots: 2 * Math.ceil(maxSequences / groupSize),
    ...typeof pages === "function" ? pages(groupSize, positions) : pages,
  });
}

/** The largest sum of the `each` longest of `window` neighbours, by a Fenwick tree over lengths, longest first. */
function maxTogether(
  lengths: readonly number[],
  { window, each }: { readonly window: number; readonly each: number },
): number {
  const longest = lengths.reduce((a, b) => Math.max(a, b), 0);
  const size = powerOfTwo(longest + 1);
  const counts = new Float64Array(size + 1);
  const sums = new Float64Array(size + 1);
  const add = (length: number, count: number) => {
    for (let i = longest - length + 1; i <= size; i += i & -i) {
      counts[i]! += count;
      sums[i]! += count * length;
    }
  };
  const ofLongest = () => {
    let [at, left, total] = [0, each, 0];
    for (let step = size; step >= 1; step /= 2) {
      if (at + step > size || counts[at + step]! > left) continue;
      at += step;
      left -= counts[at]!;
      total += sums[at]!;
    }
    return at < size ? total + left * (longest - at) : total;
  };
  let max = 0;
  lengths.forEach((length, i) => {
    add(length, 1);
    if (i >= window) add(lengths[i - window]!, -1);
    max = Math.max(max, ofLongest());
  });
  return max;
}

function pageSize(lengths: readonly number[]): number {
  const mean = sum(lengths) / lengths.length;
  return lengths.length === 1 || (PAGE - 1) / 2 <= EMPTY * mean
    ? PAGE
    : SHORT_PAGE;
}

function powerOfTwo(min: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, min)));
}

/** The next multiple of an eighth of the power of two below. */
function eighthsOfPower(min: number): number {
  const eighth = 2 ** (Math.floor(Math.log2(min)) - 3);
  return Math.ceil(min / eighth) * eighth;
}
