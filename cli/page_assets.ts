/** The script and the style of the page. They are bundled when the package is built, or at the start of a clone. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { DataError } from "../spec/errors.ts";
import type { PageAssets } from "../view/mod.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./package_file.ts";

/** Reads the assets. Throws DataError if they were not built. */
export async function pageAssets(io: CliIo): Promise<PageAssets> {
  const { files } = io;
  return {
    script: await files.readText(bundled(io, "page/main.js")),
    style: await files.readText(bundled(io, "page/main.css")),
  };
}

/** Returns the path of the module that runs plans in a page. Throws DataError if it was not built. */
export function browserModule(io: CliIo): string {
  return bundled(io, "browser/mod.js");
}

function bundled({ files }: CliIo, name: string): string {
  // When the code runs from TypeScript, no compiled file is next to it.
  const file = [
    fileURLToPath(new URL("..", import.meta.url)),
    packageFile(".compiled/dist"),
  ].map((folder) => files.join(folder, name)).find((file) => existsSync(file));
  if (file !== undefined) return file;
  throw new DataError(
    "Cannot make a page: its script is not built. Run 'node scripts/bundle.mjs .compiled/dist'",
  );
}
