/** Files and folders that must be new. A folder is complete or empty after an error. */

import { DataError } from "../spec/errors.ts";
import type { FileSystem } from "./files.ts";

/** Checks that a file or folder can be created. Throws DataError if it exists, unless it is an empty folder. */
export async function checkNew(
  path: string,
  files: FileSystem,
  kind: "file" | "folder",
): Promise<void> {
  const found = await files.stat(path);
  if (found === undefined) return;
  const isFolder = kind === "folder" && found === "folder";
  if (isFolder && (await files.list(path)).length === 0) return;
  throw new DataError(
    `Cannot write '${path}': there is a ${
      isFolder ? "folder of that name with files" : "file of that name"
    }. Choose another name`,
  );
}

/** Runs an action that writes files. If it fails, removes those that it wrote, so that it can be started again. */
export async function removingOnFailure<R>(
  files: FileSystem,
  action: (write: FileSystem["write"]) => Promise<R>,
): Promise<R> {
  const written: string[] = [];
  try {
    return await action(async (path, parts) => {
      await files.write(path, parts);
      written.push(path);
    });
  } catch (error) {
    // The first error is the cause.
    for (const path of written) await files.remove(path).catch(() => {});
    throw error;
  }
}
