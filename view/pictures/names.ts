/** The names of pictures, without the code that draws them. */

/** The names, in the order of the page. */
export const PICTURE_NAMES = ["tracks", "ranks", "traffic", "memory"] as const;

/** A picture's name. */
export type PictureName = typeof PICTURE_NAMES[number];
