/** Files and folders that must be new. After an error, a folder has no files. */

import { DataError } from "../spec/errors.ts";
import type { FileSystem } from "./files.ts";

/** Checks that a file or folder can be created. Throws DataError if it exists, unless it is a folder without files. */
export async function checkNew(
  path: string,
  files: FileSystem,
  kind: "file" | "folder",
): Promise<void> {
  const found = await files.stat(path);
  if (found === undefined) return;
  const isFolder = kind === "folder" && found === "folder";
  if (isFolder && !await hasFiles(path, files)) return;
  // A GGUF file has the kind of a folder, like a checkpoint.
  throw new DataError(
    `Cannot write '${path}': there is a ${
      isFolder ? "folder of that name with files" : "file of that name"
    }. Choose another name`,
  );
}

/** Whether there are files in a folder or in its folders. */
async function hasFiles(folder: string, files: FileSystem): Promise<boolean> {
  for (const name of await files.list(folder)) {
    const path = files.join(folder, name);
    const isFolder = await files.stat(path) === "folder";
    if (!isFolder || await hasFiles(path, files)) return true;
  }
  return false;
}

/** Runs an action that writes files. If it fails, the files that it wrote are removed, so that it can run again. */
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
