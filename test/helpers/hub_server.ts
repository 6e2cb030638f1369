/** Server with the hub's API: commits, file lists, and redirects of large files to a second server. */

import { createHash } from "node:crypto";
import {
  createServer,
  type IncomingMessage,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";

/** Contents of a repository, by file name. */
export type HubFiles = { readonly [name: string]: Uint8Array };

/** Faults and conditions of the server. */
export interface HubFaults {
  /** Transfers of large files that end early: bytes sent, in order. */
  readonly cut?: number[];
  /** Sends large files whose bytes differ from their hash. */
  readonly damaged?: boolean;
  /** Size that is listed of large files, in bytes. */
  readonly listed?: number;
  /** Required token. */
  readonly token?: string;
  /** Answers all requests with 403. */
  readonly gated?: boolean;
  /** Number of first requests that are answered with 503. */
  busy?: number;
}

export interface HubServer {
  readonly endpoint: string;
  /** Received requests: `METHOD PATH`; for large files `STORE RANGE`. */
  readonly requests: string[];
  /** Bytes of files sent. */
  sent: number;
  close(): Promise<void>;
}

/** Minimum size of files in the store, in bytes. */
const LARGE = 4096;

const sha256 = (bytes: Uint8Array) =>
  createHash("sha256").update(bytes).digest("hex");

const gitHash = (bytes: Uint8Array) =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes)
    .digest("hex");

/** Returns the commit hash of a revision. */
export function commitOf(revision: string): string {
  return createHash("sha1").update(revision).digest("hex");
}

/** Starts a server with the models of `main`, by repository. The caller closes it. */
export async function serveHub(
  models: { readonly [repo: string]: HubFiles },
  faults: HubFaults = {},
): Promise<HubServer> {
  const hub = { requests: [] as string[], sent: 0 };
  const store = new Map<string, Uint8Array>();
  for (const files of Object.values(models)) {
    for (const bytes of Object.values(files)) store.set(sha256(bytes), bytes);
  }
  // Redirects lead to another origin, which must not receive the token.
  const large = createServer((request, response) => {
    const bytes = store.get((request.url ?? "").slice(1))!;
    hub.requests.push(
      `STORE ${request.headers.range ?? "all"}${
        request.headers.authorization === undefined ? "" : " with the token"
      }`,
    );
    sendBytes(request, response, {
      bytes: faults.damaged ? bytes.map((byte) => byte ^ 1) : bytes,
      hub,
      cut: faults.cut,
    });
  });
  const storeUrl = await listen(large);
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? "", "http://hub");
    hub.requests.push(`${request.method} ${url.pathname}`);
    if ((faults.busy ?? 0) > 0) {
      faults.busy!--;
      return refuse(response, 503);
    }
    if (
      faults.token !== undefined &&
      request.headers.authorization !== `Bearer ${faults.token}`
    ) return refuse(response, 401);
    if (faults.gated) return refuse(response, 403);
    answer(request, response, { url, models, hub, storeUrl, faults });
  });
  const endpoint = await listen(server);
  return Object.assign(hub, {
    endpoint,
    close: async () => {
      for (const one of [server, large]) {
        one.closeAllConnections();
        await new Promise((resolve) => one.close(resolve));
      }
    },
  });
}

async function listen(server: ReturnType<typeof createServer>) {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function refuse(response: ServerResponse, status: number): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify({ error: `status ${status}` }));
}

function answer(
  request: IncomingMessage,
  response: ServerResponse,
  { url, models, hub, storeUrl, faults }: {
    readonly faults: HubFaults;
    readonly url: URL;
    readonly models: { readonly [repo: string]: HubFiles };
    readonly hub: { sent: number };
    readonly storeUrl: string;
  },
): void {
  const json = (value: unknown) => {
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(value));
  };
  const api = /^\/api\/models\/([^/]+\/[^/]+)\/(revision|tree)\/([^/]+)$/
    .exec(url.pathname);
  if (api) {
    const [, repo = "", kind, name = ""] = api;
    const files = models[repo];
    const known = ["main", commitOf("main")].includes(name);
    if (!files || !known) return refuse(response, 404);
    if (kind === "revision") {
      return json({ _id: repo, id: repo, sha: commitOf("main") });
    }
    return json([
      { type: "directory", path: "folder", oid: commitOf("folder"), size: 0 },
      { type: "file", path: "../evil", oid: commitOf("evil"), size: 1 },
      ...Object.entries(files).map(([path, bytes]) => ({
        type: "file",
        path,
        size: bytes.length,
        oid: gitHash(bytes),
        ...bytes.length < LARGE ? {} : {
          lfs: {
            oid: sha256(bytes),
            size: faults.listed ?? bytes.length,
            pointerSize: 134,
          },
        },
      })),
    ]);
  }
  const [, repo = "", revision, name = ""] =
    /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname) ?? [];
  const bytes = models[repo]?.[name];
  if (!bytes || revision !== commitOf("main")) return refuse(response, 404);
  if (bytes.length < LARGE) {
    response.setHeader("etag", `"${gitHash(bytes)}"`);
    return sendBytes(request, response, { bytes, hub });
  }
  response.writeHead(302, {
    location: `${storeUrl}/${sha256(bytes)}`,
    "x-linked-etag": `"${sha256(bytes)}"`,
    "x-linked-size": bytes.length,
  });
  response.end();
}

function sendBytes(
  request: IncomingMessage,
  response: ServerResponse,
  { bytes, hub, cut }: {
    readonly bytes: Uint8Array;
    readonly hub: { sent: number };
    readonly cut?: number[] | undefined;
  },
): void {
  const [, from = "0", to] =
    /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
  const end = to ? Number(to) + 1 : bytes.length;
  const part = bytes.subarray(Number(from), end);
  const ranged = request.headers.range !== undefined;
  response.writeHead(ranged ? 206 : 200, {
    etag: `"${sha256(bytes)}"`,
    "content-length": part.length,
    ...ranged
      ? { "content-range": `bytes ${from}-${end - 1}/${bytes.length}` }
      : {},
  });
  // A request for one byte always succeeds.
  const fits = cut?.[0] === undefined || cut[0] >= part.length - 1;
  const sent = fits ? undefined : cut.shift();
  if (sent === undefined) {
    hub.sent += part.length;
    response.end(part);
    return;
  }
  hub.sent += sent;
  response.write(part.subarray(0, sent), () => response.socket?.end());
}
