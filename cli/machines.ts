/** The machines that `--target` knows by name: files of `machines/`, beside which one may have one's own. */

import { readMachine } from "../engine/mod.ts";
import { DataError } from "../spec/errors.ts";
import type { Machine } from "../spec/mod.ts";
import type { CliIo } from "./io.ts";
import { packageFile } from "./places.ts";

/** Read the machine of a name, or of a file. Throws DataError that lists the names where it is neither. */
export async function findMachine(io: CliIo, target: string): Promise<Machine> {
  const { files } = io;
  const machines = packageFile("machines");
  if (/^[a-z0-9-]+$/.test(target)) {
    const file = files.join(machines, `${target}.json`);
    if (await files.stat(file) !== undefined) {
      return await readMachine(file, files);
    }
  }
  if (await files.stat(target) === undefined) {
    const names = (await files.list(machines))
      .filter((name) => name.endsWith(".json"))
      .map((name) => name.replace(/\.json$/, "")).sort();
    throw new DataError(
      `Cannot find machine '${target}': it is no file, and no name of ${
        names.join(", ")
      }. Give one of them, or a machine file`,
    );
  }
  return await readMachine(target, files);
}
