/** The script and the style of the page, which were bundled when the package was made, or at the start of a clone. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { DataError } from "../spec/errors.ts";
import type { PageAssets } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./places.ts";

/** Read them. Throws DataError where they were not made. */
export async function pageAssets(io: CliIo): Promise<PageAssets> {
  const { files } = io;
  return {
    script: await files.readText(bundled(io, "page/main.js")),
    style: await files.readText(bundled(io, "page/main.css")),
  };
}

/** The file of the module that runs plans in a page. Throws DataError where it was not made. */
export function browserModule(io: CliIo): string {
  return bundled(io, "browser/mod.js");
}

function bundled({ files }: CliIo, name: string): string {
  // Code that runs from its TypeScript has nothing compiled beside it.
  const file = [
    fileURLToPath(new URL("..", import.meta.url)),
    packageFile(".compiled/dist"),
  ].map((folder) => files.join(folder, name)).find((file) => existsSync(file));
  if (file !== undefined) return file;
  throw new DataError(
    "Cannot make a page: its script is not built. Run 'node scripts/bundle.mjs .compiled/dist'",
  );
}
