/** Git LFS pointers: short texts in place of the large files of a clone. */

/** The state of a file that is one, as a predicate with its remedy. */
export const LFS_POINTER =
  "is a Git LFS pointer, which 'git lfs pull' replaces by the file";

/** Whether a file with this beginning, of at least 8 characters, is one. Weights and JSON never begin in this way. */
export function isLfsPointer(start: string): boolean {
  return start.startsWith("version ");
}
