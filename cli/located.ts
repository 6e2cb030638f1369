/** Models by path or by name on the hub. */

import type { Extent } from "./hub/mod.ts";
import { parseHubName } from "./hub_name.ts";
import type { CliIo } from "./io.ts";
import { UsageError } from "./flags/values.ts";

/** A located model: its path, and the file system that contains it. */
export interface Located {
  readonly io: CliIo;
  readonly model: string;
}

/** Options for locating a model. */
export interface LocateOptions {
  /** Default: `main`. */
  readonly revision?: string | undefined;
  /** The extent to read of a model on the hub. Default: everything. */
  readonly extent?: Extent;
  /** Prefer an existing file or folder of that path. Default: true. */
  readonly local?: boolean;
}

/** Locates a model: an existing path, otherwise a model on the hub, which is downloaded. */
export async function locate(
  io: CliIo,
  model: string,
  { revision, extent = "weights", local = true }: LocateOptions = {},
): Promise<Located> {
  const name = parseHubName(model);
  const isLocal = name === undefined ||
    local && await io.files.stat(model) !== undefined;
  if (isLocal) {
    if (revision === undefined) return { io, model };
    throw new UsageError(
      `Cannot use --revision with '${model}': it is a file or folder, not a name on the hub. Leave it out`,
    );
  }
  if (revision !== undefined && name.revision !== undefined) {
    throw new UsageError(
      `Cannot use --revision with '${model}': the name has one. Give one of them`,
    );
  }
  const { fetchModel } = await import("./hub/mod.ts");
  const wanted = parseHubName(
    revision === undefined ? model : `${name.repo}@${revision}`,
  );
  if (wanted === undefined) {
    throw new UsageError(
      `Cannot use --revision '${revision}'. Give a branch, a tag or a commit`,
    );
  }
  const fetched = await fetchModel(io, {
    ...wanted,
    file: name.file,
  }, extent);
  return { io: { ...io, files: fetched.files }, model: fetched.model };
}
