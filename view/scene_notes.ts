/** The shapes of a scene that say what they are, and the way from one to the next by keys. */

import type { Point, Scene } from "./scene.ts";

/** A shape that has a title. */
export interface SceneNote {
  readonly title: string;
  /** Its middle; undefined for curves. */
  readonly middle: Point | undefined;
  /** The time that it stands for, in microseconds. */
  readonly time: Point | undefined;
}

/** Shapes with titles, in the order in which they are drawn. */
export function notesOf({ shapes }: Scene): SceneNote[] {
  return shapes.flatMap((shape): SceneNote[] => {
    const { title, time } = shape;
    if (title === undefined) return [];
    if (shape.kind !== "rect") return [{ title, middle: undefined, time }];
    const { at: [x, y], size: [width, height] } = shape;
    return [{ title, middle: [x + width / 2, y + height / 2], time }];
  });
}

/**
 * The index of the shape that a key leads to: left and right go in the order of drawing, up and down to the nearest shape
 * there. Undefined where the key leads nowhere.
 */
export function nextNote(
  notes: readonly SceneNote[],
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
  let [best, least]: [number | undefined, number] = [undefined, Infinity];
  for (const [i, { middle }] of notes.entries()) {
    const down = middle === undefined ? 0 : sign * (middle[1] - from[1]);
    if (down < 1) continue;
    const far = 2 * down + Math.abs(middle![0] - from[0]);
    if (far < least) [best, least] = [i, far];
  }
  return best;
}
