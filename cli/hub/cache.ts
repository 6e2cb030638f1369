/**
 * The model cache in the standard layout: `blobs` by hash, `snapshots` of commits with links to blobs, and `refs` of
 * revisions.
 */

import * as fs from "node:fs/promises";
import path from "node:path";
import { MachineError } from "../../spec/errors.ts";
import { sizeText } from "../../spec/size_text.ts";
import { sum } from "../../spec/sum.ts";
import { codeOf, makeFolder } from "../../runtime/cache/folders.ts";
import { guard } from "../files.ts";
import type { HubSettings } from "../hub_settings.ts";
import type { HubFile } from "./client.ts";

/** The cache of one model. */
export interface RepoCache {
  /** Returns the folder of a commit. */
  snapshot(commit: string): string;
  /** Returns the commit of a revision at its last download. */
  commitOf(revision: string): Promise<string | undefined>;
  setCommit(revision: string, commit: string): Promise<void>;
  /** Returns the path of the contents and of their lock. */
  blob(file: HubFile): { readonly path: string; readonly lock: string };
  /** Returns whether a commit has a file. */
  has(commit: string, name: string): Promise<boolean>;
  /** Links cached contents into a commit. */
  link(commit: string, file: HubFile): Promise<void>;
  /** Creates the folders of a commit. */
  makeFolders(commit: string): Promise<void>;
  /** Throws MachineError if the disk has too little space for the missing bytes of files. */
  checkSpace(files: readonly HubFile[]): Promise<void>;
}

/** Suffix of a file that is not complete. */
export const PART = ".incomplete";

const COMMIT = /^[0-9a-f]{40}$/;

/** Returns the size of a file. Undefined if it does not exist. */
export async function sizeOf(file: string): Promise<number | undefined> {
  return await fs.stat(file).then(({ size }) => size, () => undefined);
}

/** Returns the cache of a model. Throws MachineError if no cache folder exists. */
export function repoCache({ cache }: HubSettings, repo: string): RepoCache {
  if (cache === undefined) {
    throw new MachineError(
      "Cannot fetch a model: this user has no home. Name a folder in the environment variable HF_HOME",
    );
  }
  const name = `models--${repo.replaceAll("/", "--")}`;
  const folder = path.join(cache, name);
  const refs = path.join(folder, "refs");
  const locks = path.join(cache, ".locks", name);
  const snapshot = (commit: string) => path.join(folder, "snapshots", commit);
  const blob = ({ etag }: HubFile) => ({
    path: path.join(folder, "blobs", etag),
    lock: path.join(locks, `${etag}.lock`),
  });
  const has = async (commit: string, file: string) =>
    await fs.stat(path.join(snapshot(commit), file)).then(
      () => true,
      () => false,
    );
  return {
    snapshot,
    blob,
    has,
    commitOf: async (revision) => {
      if (COMMIT.test(revision)) return revision;
      const text = await fs.readFile(path.join(refs, revision), "utf8")
        .catch(() => "");
      return COMMIT.test(text.trim()) ? text.trim() : undefined;
    },
    setCommit: async (revision, commit) => {
      if (revision === commit) return;
      const file = path.join(refs, revision);
      await guard("write", file, async () => {
        await makeFolder(path.dirname(file));
        await fs.writeFile(file, commit);
      });
    },
    makeFolders: async (commit) => {
      for (
        const made of [path.join(folder, "blobs"), locks, snapshot(commit)]
      ) await guard("write", made, () => makeFolder(made));
    },
    checkSpace: async (files) => {
      const sizes = await Promise.all(files.map(async (file) => {
        const { path } = blob(file);
        const stored = await sizeOf(path) ?? await sizeOf(`${path}${PART}`);
        return Math.max(0, file.size - (stored ?? 0));
      }));
      const missing = sum(sizes);
      // Some file systems do not state their space.
      const free = await fs.statfs(folder).then(
        ({ blocks, bavail, bsize }) => blocks === 0 ? Infinity : bavail * bsize,
        () => Infinity,
      );
      if (missing <= free) return;
      throw new MachineError(
        `Cannot fetch '${repo}': it needs ${
          sizeText(missing)
        }, and the disk of '${cache}' has ${
          sizeText(free)
        } left. Free some space, or name a folder of another disk in the environment variable HF_HOME`,
      );
    },
    link: async (commit, file) => {
      if (await has(commit, file.path)) return;
      const from = path.join(snapshot(commit), file.path);
      const { path: to } = blob(file);
      await guard("write", from, async () => {
        // Removes a dangling link.
        await fs.rm(from, { force: true });
        try {
          await fs.symlink(path.relative(path.dirname(from), to), from);
        } catch (error) {
          if (codeOf(error) === "EEXIST") return;
          // Windows allows only some users to create symbolic links.
          if (codeOf(error) !== "EPERM") throw error;
          await fs.link(to, from).catch(() => fs.copyFile(to, from));
        }
      });
    },
  };
}
