/**
 * Source positions in a plan: relative to the package for its files, and to the common folder for others. A plan does
 * not reveal the folders of the machine that compiled it.
 */

import { thisFile } from "../spec/call_site.ts";
import type { Span } from "../spec/errors.ts";

/** The folder of the package, with a trailing slash. */
function packageFolder(): string {
  return thisFile().replace(/(spec|chunks)[/\\][^/\\]*$/, "");
}

/** The common folders of all paths. */
function sharedFolder(files: readonly string[]): string {
  const [first = "", ...others] = files.map((file) =>
    file.split(/(?<=[/\\])/).slice(0, -1)
  );
  const folders = [...first];
  for (const other of others) {
    const differs = folders.findIndex((folder, i) => folder !== other[i]);
    if (differs >= 0) folders.length = differs;
  }
  return folders.join("");
}

/** `/a/b.ts`, `C:\a\b.ts`, `file:///a/b.ts` */
const WHOLE = /^([/\\]|[A-Za-z]+:)/;

/**
 * The same steps or nodes, with machine-independent names of source files. Names that are already independent are
 * unchanged.
 */
export function withSourceNames<T extends { readonly span?: Span }>(
  steps: readonly T[],
): T[] {
  const files = [
    ...new Set(steps.flatMap(({ span }) => span ? [span.file] : [])),
  ].filter((file) => WHOLE.test(file));
  const folder = packageFolder();
  const inLibrary = (file: string) => folder !== "" && file.startsWith(folder);
  const shared = sharedFolder(files.filter((file) => !inLibrary(file)));
  const nameOf = (file: string) =>
    WHOLE.test(file)
      ? file.slice((inLibrary(file) ? folder : shared).length).replaceAll(
        "\\",
        "/",
      )
      : file;
  return steps.map((step) =>
    step.span
      ? { ...step, span: { ...step.span, file: nameOf(step.span.file) } }
      : step
  );
}
