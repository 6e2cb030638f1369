/** What pictures there are, for those who draw none. */

/** The names, in the order of the page. */
export const PICTURE_NAMES = ["tracks", "ranks", "traffic", "memory"] as const;

/** A picture's name. */
export type PictureName = typeof PICTURE_NAMES[number];
