/** What plans call the pages of caches: the axes of a state, `page within …`, and the table `pages`, i32 [sequence, block]. */

export const [PAGE, WITHIN, BLOCK] = ["page", "within", "block"] as const;

/** The input that says in which page of its rank each block of positions of a sequence is. */
export const PAGES_INPUT = "pages";
