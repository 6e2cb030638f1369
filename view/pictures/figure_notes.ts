/** The titled shapes of a figure, and keyboard navigation between them. */

import type { Figure, Point } from "./figure.ts";

/** A shape with a title. */
export interface FigureNote {
  readonly title: string;
  /** Its center. Undefined for curves. */
  readonly middle: Point | undefined;
  /** The time range of the shape, in microseconds. */
  readonly time: Point | undefined;
}

/** Returns the shapes with titles in drawing order. */
export function notesOf({ shapes }: Figure): FigureNote[] {
  return shapes.flatMap((shape): FigureNote[] => {
    const { title, time } = shape;
    if (title === undefined) return [];
    if (shape.kind !== "rect") return [{ title, middle: undefined, time }];
    const { at: [x, y], size: [width, height] } = shape;
    return [{ title, middle: [x + width / 2, y + height / 2], time }];
  });
}

/**
 * Returns the index of the next shape for a key. Left and right follow the drawing order; up and down lead to the
 * nearest shape. Undefined if there is none.
 */
export function nextNote(
  notes: readonly FigureNote[],
  at: number | undefined,
  key: string,
): number | undefined {
  if (notes.length === 0) return undefined;
  if (key === "Home") return 0;
  if (key === "End") return notes.length - 1;
  if (!/^Arrow/.test(key)) return undefined;
  if (at === undefined) return 0;
  if (key === "ArrowRight") return Math.min(notes.length - 1, at + 1);
  if (key === "ArrowLeft") return Math.max(0, at - 1);
  const from = notes[at]!.middle;
  if (from === undefined) return undefined;
  const sign = key === "ArrowDown" ? 1 : -1;
  let [best, nearest]: [number | undefined, number] = [undefined, Infinity];
  for (const [i, { middle }] of notes.entries()) {
    const down = middle === undefined ? 0 : sign * (middle[1] - from[1]);
    if (down < 1) continue;
    const far = 2 * down + Math.abs(middle![0] - from[0]);
    if (far < nearest) [best, nearest] = [i, far];
  }
  return best;
}
