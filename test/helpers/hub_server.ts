/** A server that answers like the hub: commits, file lists, and files that are redirected to a store of large files. */

import { createHash } from "node:crypto";
import {
  createServer,
  type IncomingMessage,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";

/** The contents of a model, by file name. */
export type HubFiles = { readonly [name: string]: Uint8Array };

/** What the server does besides answering. */
export interface HubFaults {
  /** Transfers of large files that end after so many bytes, one after the other. */
  readonly cut?: number[];
  /** Large files have other bytes than their hash says. */
  readonly damaged?: boolean;
  /** The token that is asked for. */
  readonly token?: string;
  /** Answers 403. */
  readonly gated?: boolean;
  /** Requests that are answered 503 first. */
  busy?: number;
}

/** A running server. */
export interface HubServer {
  /** Its URL. */
  readonly endpoint: string;
  /** What was asked for: `METHOD PATH`, with the range of large files. */
  readonly requests: string[];
  /** Bytes of files that were sent. */
  sent: number;
  close(): Promise<void>;
}

/** Files from this size on are in the store. */
const LARGE = 4096;

const sha256 = (bytes: Uint8Array) =>
  createHash("sha256").update(bytes).digest("hex");

const gitHash = (bytes: Uint8Array) =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes)
    .digest("hex");

/** The commit that a name stands for. */
export function commitOf(revision: string): string {
  return createHash("sha1").update(revision).digest("hex");
}

/** Starts a server with models, by name and revision `main`; close it at the end. */
export async function serveHub(
  models: { readonly [repo: string]: HubFiles },
  faults: HubFaults = {},
): Promise<HubServer> {
  const hub = { requests: [] as string[], sent: 0 };
  const store = new Map<string, Uint8Array>();
  for (const files of Object.values(models)) {
    for (const bytes of Object.values(files)) store.set(sha256(bytes), bytes);
  }
  // Redirects lead to another origin, which must not be given the token.
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
    answer(request, response, { url, models, hub, storeUrl });
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
  { url, models, hub, storeUrl }: {
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
    const [, repo = "", what, name = ""] = api;
    const files = models[repo];
    const known = ["main", commitOf("main")].includes(name);
    if (!files || !known) return refuse(response, 404);
    if (what === "revision") {
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
          lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 134 },
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
  // Probes of one byte are answered.
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
