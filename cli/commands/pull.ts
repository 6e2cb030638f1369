/** `switchyard pull`: download a model from the hub into the cache. */

import { parseHubName } from "../hub_name.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { UsageError } from "../flags/values.ts";

/** Flags of `pull`. */
export interface PullFlags {
  readonly revision?: string;
}

/** Downloads the missing files of a model, and prints its folder. */
export async function pullCommand(
  io: CliIo,
  name: string,
  { revision }: PullFlags,
): Promise<number> {
  if (parseHubName(name) === undefined) {
    throw new UsageError(
      `Cannot pull '${name}': it is no name on the hub. Give OWNER/NAME`,
    );
  }
  const { model } = await locate(io, name, { revision, local: false });
  await io.out(`${model}\n`);
  return 0;
}
