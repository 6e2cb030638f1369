/** Reads the headers of weight files on the hub by range requests. */

import type { FileSystem, OpenFile } from "../../engine/files.ts";
import { withGguf } from "../../engine/gguf/folder.ts";
import { MachineError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { type HubClient, type HubFile, reasonOf } from "./client.ts";
import { inParallel } from "./parallel.ts";

/** Number of bytes in the first request of a file. Most headers are shorter. */
const HEAD = 1 << 17;

/** Number of parallel requests. */
const PARALLEL = 8;

/** Returns the files of this machine, with missing files of a folder read from the hub. */
export function withRemote(
  files: FileSystem,
  { folder, remote, client }: {
    readonly folder: string;
    readonly remote: readonly HubFile[];
    readonly client: HubClient;
  },
): FileSystem {
  const byPath = new Map(
    remote.map((file) => [files.join(folder, file.path), file]),
  );
  let heads: Promise<ReadonlyMap<HubFile, Uint8Array>> | undefined;
  return withGguf({
    ...files,
    stat: async (path) => byPath.has(path) ? "file" : await files.stat(path),
    list: async (path) => [
      ...await files.list(path),
      ...path === folder ? remote.map((file) => file.path) : [],
    ],
    open: async (path) => {
      const file = byPath.get(path);
      if (!file) return await files.open(path);
      // Opening one file reads the headers of all files.
      heads ??= headsOf(remote, client);
      return openRemote(file, client, (await heads).get(file)!);
    },
  });
}

async function headsOf(
  remote: readonly HubFile[],
  client: HubClient,
): Promise<ReadonlyMap<HubFile, Uint8Array>> {
  const heads = new Map<HubFile, Uint8Array>();
  await inParallel(remote, PARALLEL, async (file) => {
    const length = Math.min(HEAD, file.size);
    heads.set(file, await readRange(file, client, { from: 0, length }));
  });
  return heads;
}

function openRemote(
  file: HubFile,
  client: HubClient,
  head: Uint8Array,
): OpenFile {
  return {
    size: file.size,
    read: async (from, length) =>
      from + length <= head.length
        ? head.slice(from, from + length)
        : await readRange(file, client, { from, length }),
    close: () => Promise.resolve(),
  };
}

async function readRange(
  file: HubFile,
  client: HubClient,
  { from, length }: { readonly from: number; readonly length: number },
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  if (length === 0) return bytes;
  let done = 0;
  let reason = "it ended early";
  try {
    for await (
      const chunk of await client.open(file, { from, end: from + length })
    ) {
      bytes.set(chunk.subarray(0, length - done), done);
      done += chunk.length;
    }
  } catch (error) {
    if (error instanceof Error && error.message.startsWith("Cannot ")) {
      throw error;
    }
    reason = shown(reasonOf(error));
  }
  if (done >= length) return bytes;
  throw new MachineError(
    `Cannot fetch the header of '${file.path}': the transfer is interrupted (${reason}). Start again`,
  );
}
