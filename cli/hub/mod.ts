/** Provides a model of the hub as a checkpoint folder, and downloads missing files. */

import type { FileSystem } from "../../engine/files.ts";
import { DataError } from "../../spec/errors.ts";
import { sizeText } from "../../spec/size_text.ts";
import type { HubName } from "../hub_name.ts";
import type { CliIo } from "../io.ts";
import { createBar } from "../progress.ts";
import { type RepoCache, repoCache } from "./cache.ts";
import {
  type HubClient,
  type HubFile,
  openClient,
  Unreachable,
} from "./client.ts";
import { download } from "./download.ts";
import { filesNamed, smallFiles, weightNames } from "./needed.ts";
import { inParallel } from "./parallel.ts";
import { withRemote } from "./remote_files.ts";

/** The extent that a command reads: everything, or the configuration and the headers of the weights. */
export type Extent = "weights" | "headers";

/** A model of the hub on this machine. */
export interface Fetched {
  /** Folder of the commit in the cache, or a GGUF file in it. */
  readonly model: string;
  /** Files with the complete requested extent of the model. */
  readonly files: FileSystem;
}

/** Number of parallel downloads. */
const PARALLEL = 4;

/** The state of one download. */
interface Fetching {
  readonly io: CliIo;
  readonly name: HubName;
  readonly revision: string;
  readonly extent: Extent;
  readonly cache: RepoCache;
}

/**
 * Downloads the missing files of a model. Throws DataError for an unreadable model and MachineError for an unreachable
 * hub.
 */
export async function fetchModel(
  io: CliIo,
  name: HubName,
  extent: Extent,
): Promise<Fetched> {
  const { hub } = io;
  const { repo, revision = "main" } = name;
  const cache = repoCache(hub, repo);
  const fetching = { io, name, revision, extent, cache };
  const commit = await cache.commitOf(revision);
  if (hub.offline) {
    return await cached(
      fetching,
      commit,
      "Unset HF_HUB_OFFLINE to fetch it",
    );
  }
  if (commit === revision && !await missingOf(fetching, commit)) {
    return found(fetching, commit);
  }
  const client = await openClient(hub, repo, revision);
  try {
    return await fetchFrom(client, fetching);
  } catch (error) {
    const usable = error instanceof Unreachable && commit !== undefined &&
      !await missingOf(fetching, commit);
    if (!usable) throw error;
    io.err(
      `${hub.endpoint} does not answer: using the cached commit ${commit} of ${repo}`,
    );
    return found(fetching, commit);
  }
}

function found({ io, name, cache }: Fetching, commit: string): Fetched {
  const folder = cache.snapshot(commit);
  return {
    model: name.file === undefined ? folder : io.files.join(folder, name.file),
    files: io.files,
  };
}

/** Returns a model from the cache without downloads. */
async function cached(
  fetching: Fetching,
  commit: string | undefined,
  remedy: string,
): Promise<Fetched> {
  const { name: { repo }, revision } = fetching;
  if (commit === undefined) {
    throw new DataError(
      `Cannot read '${repo}': there is no such file or folder, and the cache has no model of that name with revision '${revision}'. ${remedy}`,
    );
  }
  const missing = await missingOf(fetching, commit);
  if (missing === undefined) return found(fetching, commit);
  throw new DataError(
    `Cannot use '${repo}': the cache lacks '${missing}' of revision '${revision}' (${commit}). ${remedy}`,
  );
}

/** Returns the first file that is missing in the cache, or undefined. */
async function missingOf(
  { io, name, extent, cache }: Fetching,
  commit: string,
): Promise<string | undefined> {
  const folder = cache.snapshot(commit);
  const first = name.file ?? "config.json";
  if (!await cache.has(commit, first)) return first;
  if (extent === "headers" && name.file === undefined) return undefined;
  const names = await weightNames(name, await io.files.list(folder), {
    folder,
    files: io.files,
  });
  if (names.length === 0) return "model.safetensors";
  for (const weights of names) {
    if (!await cache.has(commit, weights)) return weights;
  }
  return undefined;
}

async function fetchFrom(
  client: HubClient,
  fetching: Fetching,
): Promise<Fetched> {
  const { io, name, revision, extent, cache } = fetching;
  const commit = await client.commit(revision);
  const all = await client.list(commit);
  const small = smallFiles(all, name);
  await cache.makeFolders(commit);
  await cache.setCommit(revision, commit);
  await transfer(small, { client, commit, fetching });
  const folder = cache.snapshot(commit);
  const names = await weightNames(name, all.map(({ path }) => path), {
    folder,
    files: io.files,
  });
  const weights = filesNamed(names, all, name);
  const result = found(fetching, commit);
  if (extent === "weights") {
    await transfer(weights, { client, commit, fetching });
    return result;
  }
  const remote: HubFile[] = [];
  for (const file of weights) {
    if (!await cache.has(commit, file.path)) remote.push(file);
  }
  return {
    ...result,
    files: remote.length === 0
      ? io.files
      : withRemote(io.files, { folder, remote, client }),
  };
}

/** Downloads files into the cache, with a bar on a terminal and one line elsewhere. */
async function transfer(
  wanted: readonly HubFile[],
  { client, commit, fetching }: {
    readonly client: HubClient;
    readonly commit: string;
    readonly fetching: Fetching;
  },
): Promise<void> {
  const { io, name: { repo }, cache } = fetching;
  const files: HubFile[] = [];
  for (const file of wanted) {
    if (!await cache.has(commit, file.path)) files.push(file);
  }
  if (files.length === 0) return;
  await cache.checkSpace(files);
  const total = files.reduce((sum, { size }) => sum + size, 0);
  const what = `${files.length} ${files.length === 1 ? "file" : "files"}, ${
    sizeText(total)
  }, of ${repo}`;
  const bar = createBar(io, `Fetching ${what} {bar} {percentage} %`, total);
  if (!io.terminal) io.err(`Fetching ${what}`);
  let done = 0;
  try {
    await inParallel(files, PARALLEL, async (file, stopped) => {
      await download(file, {
        repo,
        commit,
        client,
        cache,
        stopped,
        retryMs: io.hub.retryMs,
        onBytes: (bytes) => bar.update(done += bytes),
        notice: (text) => io.err(text),
      });
    });
  } finally {
    bar.stop();
  }
}
