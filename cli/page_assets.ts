/** The script and the style of the page, which were bundled when the package was made, or at the start of a clone. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { DataError } from "../spec/errors.ts";
import type { PageAssets } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./places.ts";

/** Read them. Throws DataError where they were not made. */
export async function pageAssets({ files }: CliIo): Promise<PageAssets> {
  // Code that runs from its TypeScript has nothing compiled beside it.
  const folder = [
    fileURLToPath(new URL("../page", import.meta.url)),
    packageFile(".compiled/dist/page"),
  ].find((folder) => existsSync(files.join(folder, "main.js")));
  if (folder === undefined) {
    throw new DataError(
      "Cannot make a page: its script is not built. Run 'node scripts/bundle.mjs .compiled/dist'",
    );
  }
  return {
    script: await files.readText(files.join(folder, "main.js")),
    style: await files.readText(files.join(folder, "main.css")),
  };
}
