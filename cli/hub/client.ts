/** Requests to the hub: the commit of a revision, its files, and their contents. */

import { readFile } from "node:fs/promises";
import { setTimeout } from "node:timers/promises";
import type { HubApiError } from "@huggingface/hub";
import { codeOf } from "../../runtime/cache/folders.ts";
import { DataError, MachineError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import type { HubSettings } from "../hub_settings.ts";
import { UsageError } from "../flags/values.ts";

/** A file of a model. */
export interface HubFile {
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  /**
   * Hash of the contents and name in the cache. It is the SHA-256 of a large file, otherwise the git object id (SHA-1).
   */
  readonly etag: string;
}

/** One model on the hub. */
export interface HubClient {
  /** Returns the commit of a revision. */
  commit(revision: string): Promise<string>;
  /** Lists the files at the top level of a commit. */
  list(commit: string): Promise<HubFile[]>;
  /** Reads a file from an offset to `end`, or to its end. Rejects with the cause of an interruption. */
  open(
    file: HubFile,
    range: { readonly from: number; readonly end?: number },
  ): Promise<ReadableStream<Uint8Array>>;
}

/** Thrown if the hub is not reachable. */
export class Unreachable extends MachineError {
  /** The reason for users, such as the code of an error of the system. */
  readonly reason: string;
  constructor(message: string, { reason }: { readonly reason: string }) {
    super(message);
    this.reason = reason;
  }
}

/** Number of attempts for a request after failures of the hub or the network. */
const ATTEMPTS = 4;

/** Opens a model. `revision` is used in messages until the commit is known. */
export async function openClient(
  settings: HubSettings,
  repo: string,
  revision: string,
): Promise<HubClient> {
  const { endpoint: hubUrl } = settings;
  if (!/^https?:/i.test(hubUrl) || !URL.canParse(hubUrl)) {
    throw new UsageError(
      `Cannot use HF_ENDPOINT '${
        shown(hubUrl)
      }': it is no HTTP URL. Use one such as https://huggingface.co`,
    );
  }
  // Loaded on demand: other commands do not wait for it.
  const hub = await import("@huggingface/hub");
  const token = await tokenOf(settings);
  const fetch = authorized(hubUrl, token);
  const asked = { hubUrl, fetch };
  const repeat = async <T>(request: () => Promise<T>): Promise<T> => {
    for (let attempt = 1;; attempt++) {
      try {
        return await request();
      } catch (error) {
        const failure = explain(error, {
          repo,
          revision,
          endpoint: hubUrl,
          hasToken: token !== undefined,
        });
        if (failure instanceof DataError || attempt === ATTEMPTS) {
          throw failure;
        }
        await setTimeout(settings.retryMs * 2 ** (attempt - 1));
      }
    }
  };
  let of = revision;
  return {
    commit: (wanted) =>
      repeat(async () => {
        const { sha } = await hub.modelInfo({
          ...asked,
          name: repo,
          revision: wanted,
          additionalFields: ["sha"],
        });
        if (!/^[0-9a-f]{40}$/.test(sha)) {
          throw new DataError(
            `Cannot read '${repo}': ${hubUrl} names no commit. Check HF_ENDPOINT`,
          );
        }
        return sha;
      }),
    list: (commit) =>
      repeat(async () => {
        of = commit;
        const found: HubFile[] = [];
        for await (
          const entry of hub.listFiles({ ...asked, repo, revision: commit })
        ) {
          const etag = entry.lfs?.oid ?? entry.oid ?? "";
          if (entry.type !== "file" || !isSafe(entry.path, etag)) continue;
          found.push({
            path: entry.path,
            size: entry.lfs?.size ?? entry.size,
            etag,
          });
        }
        return found;
      }),
    open: (file, { from, end }) =>
      repeat(async () => {
        const blob = await hub.downloadFile({
          ...asked,
          repo,
          path: file.path,
          revision: of,
          xet: false,
        });
        if (blob === null || blob.size !== file.size) {
          throw new DataError(
            `Cannot fetch '${file.path}' of '${repo}': the hub lists ${file.size} bytes and has ${
              blob?.size ?? "none"
            }. Start again`,
          );
        }
        return blob.slice(from, end ?? file.size).stream();
      }),
  };
}

/** Returns whether both values are safe as names in the cache. */
function isSafe(path: string, etag: string): boolean {
  return /^[A-Za-z0-9_][\w.-]*$/.test(path) &&
    /^([0-9a-f]{40}|[0-9a-f]{64})$/.test(etag);
}

async function tokenOf(
  { token, tokenFile }: HubSettings,
): Promise<string | undefined> {
  if (token !== undefined || tokenFile === undefined) return token;
  const text = await readFile(tokenFile, "utf8").catch(() => "");
  return text.trim() || undefined;
}

/**
 * `fetch` that sends the token only to the endpoint, not to redirected addresses. It rejects a server that ignores the
 * requested range.
 */
function authorized(endpoint: string, token: string | undefined): typeof fetch {
  const { origin } = new URL(endpoint);
  return async (input, init) => {
    const headers = new Headers(init?.headers);
    const url = input instanceof Request ? input.url : String(input);
    if (token !== undefined && new URL(url).origin === origin) {
      headers.set("authorization", `Bearer ${token}`);
    }
    const answer = await fetch(input, { ...init, headers });
    const range = headers.get("range");
    if (range !== null && answer.status === 200) {
      await answer.body?.cancel();
      throw new Error(
        `Cannot read '${range}' alone: the server ignores ranges`,
      );
    }
    return answer;
  };
}

/** The purpose of a request. */
interface Asked {
  readonly repo: string;
  readonly revision: string;
  readonly endpoint: string;
  readonly hasToken: boolean;
}

/** Explains a failed request. Returns a DataError if a retry cannot succeed. */
function explain(error: unknown, asked: Asked): Error {
  if (error instanceof DataError || error instanceof MachineError) return error;
  const { repo, revision, endpoint, hasToken } = asked;
  const missing =
    `Cannot read '${repo}': there is no such file or folder, and ${endpoint} has`;
  switch ((error as Partial<HubApiError>).statusCode) {
    case 401:
      return new DataError(
        `${missing} no such public model. Check the name, or ${
          hasToken ? "renew HF_TOKEN" : "set HF_TOKEN to an access token"
        }`,
      );
    case 403:
      return new DataError(
        `Cannot fetch '${repo}': its access is restricted. Request access at ${endpoint}/${repo}, and set HF_TOKEN to an access token`,
      );
    case 404:
      return new DataError(
        `${missing} no such model with revision '${revision}'. Check the name`,
      );
  }
  const reason = shown(reasonOf(error));
  return new Unreachable(
    `Cannot fetch '${repo}': there is no such file or folder, and ${endpoint} does not answer (${reason}). Check the connection and start again`,
    { reason },
  );
}

/** Returns the innermost reason of an error. The streams of the library reject with strings. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return codeOf(error.cause) ?? codeOf(error) ??
    error.message.split("\n")[0]!.replace(/\.$/, "");
}
