/** Git LFS pointers: short texts in place of the large files of a clone. */

/** State of such a file, as a predicate with its remedy. */
export const LFS_POINTER =
  "is a Git LFS pointer, which 'git lfs pull' replaces by the file";

/** Whether a file with this start is a pointer. 8 characters suffice: no JSON, GGUF or safetensors file has them. */
export function isLfsPointer(start: string): boolean {
  return start.startsWith("version ");
}
