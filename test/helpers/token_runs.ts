/** Sequences and positions of the tokens of a step. */

/** Inputs `sequence` and `position` of runs of tokens, [sequence, from, to]. */
export function tokenRuns(
  ...runs: readonly (readonly [number, number, number])[]
): { readonly sequence: number[]; readonly position: number[] } {
  const tokens = runs.flatMap(([sequence, from, to]) =>
    Array.from({ length: to - from }, (_, i) => [sequence, from + i] as const)
  );
  return {
    sequence: tokens.map(([sequence]) => sequence),
    position: tokens.map(([, position]) => position),
  };
}
