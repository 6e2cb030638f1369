/** Routes of a server, with access control and limits. */

import { type Context, Hono } from "hono";
import { cors } from "hono/cors";
import { sha256 } from "../digest.ts";
import { readBody } from "./body.ts";
import { prepareChat } from "./chat_completions.ts";
import { prepareCompletion } from "./completions.ts";
import type { Connection } from "./connection.ts";
import { quantity } from "../../spec/quantity.ts";
import { RequestError } from "./errors.ts";
import type { Prepared } from "./format.ts";
import { checkReceipt } from "./receipts.ts";
import { respondOnce, respondStream } from "./respond.ts";
import { prepareResponse } from "./responses.ts";
import type { Served } from "./served.ts";

/** Access control and limits of a server. */
export interface AppOptions {
  /** API keys. A request must have one of them. Empty: no key is required. */
  readonly apiKeys: readonly string[];
  /** Allowed origins of pages; `*` for all. */
  readonly origins: readonly string[];
  /** Allowed host names of requests, without ports. Undefined: any. */
  readonly hosts: readonly string[] | undefined;
  /** Maximum number of queued requests. */
  readonly maxQueue: number;
  /** Maximum bytes of a body. */
  readonly maxBody: number;
  /** Timeout of a request in milliseconds. */
  readonly requestMs: number;
  /** The page at `/`. */
  readonly page?: string | undefined;
}

/** A server without its connections. */
export interface ServerApp {
  /** Answers a request. */
  readonly fetch: (
    request: Request,
    connection: Connection,
  ) => Response | Promise<Response>;
  /** Rejects further requests. Resolves when none is in progress. */
  drain(): Promise<void>;
}

/** Converts a body to a prepared request. */
type Prepare = (
  body: { readonly [field: string]: unknown },
  served: Served,
) => Promise<Prepared>;

/** Routes by path. */
const ANSWERED: { readonly [path: string]: Prepare } = {
  "/v1/completions": prepareCompletion,
  "/v1/chat/completions": prepareChat,
  "/v1/responses": prepareResponse,
};

/** Headers for rules that the policy in the page cannot state. */
const PAGE_HEADERS = {
  "content-security-policy": "frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

/** Creates the routes of a server. */
export async function createApp(
  served: Served,
  options: AppOptions,
): Promise<ServerApp> {
  const app = new Hono<{ Bindings: Connection }>();
  const requests = new RequestGate(served, options);
  app.onError((error, c) => failed(c, error));
  app.notFound((c) =>
    failed(
      c,
      Object.hasOwn(ANSWERED, c.req.path)
        ? new RequestError(
          `Cannot answer ${c.req.method} ${c.req.path}: requests need a body. Use POST`,
          { kind: "method" },
        )
        : new RequestError(
          `Cannot answer ${c.req.method} ${c.req.path}: there is no such route. See docs/serve.md`,
          { kind: "unknown" },
        ),
    )
  );
  if (options.hosts) app.use(checkHost(options.hosts));
  if (options.origins.length > 0) {
    app.use(cors({ origin: [...options.origins] }));
  }
  app.get(
    "/health",
    (c) =>
      requests.unavailable
        ? failed(c, requests.unavailable)
        : c.json({ status: "ok" }),
  );
  const { page } = options;
  if (page !== undefined) {
    app.get("/", (c) => c.html(page, 200, PAGE_HEADERS));
  }
  const withKey = await checkKey(options.apiKeys);
  app.get("/metrics", withKey, async () => {
    const { text, type } = await served.metrics.text(served.loop);
    return new Response(text, { headers: { "content-type": type } });
  });
  app.use("/v1/*", withKey);
  const model = {
    id: served.name,
    object: "model",
    created: served.created,
    owned_by: "switchyard",
    max_model_len: served.shape.maxContext,
  };
  app.get("/v1/models", (c) => c.json({ object: "list", data: [model] }));
  app.get("/v1/models/:name{.+}", (c) => {
    checkModel(c.req.param("name"), served);
    return c.json(model);
  });
  for (const [path, prepare] of Object.entries(ANSWERED)) {
    app.post(path, async (c) => {
      const begun = served.now();
      const counted = (status: number) =>
        served.metrics.responded(path, { status, ms: served.now() - begun });
      try {
        return await requests.answer(c, prepare, counted);
      } catch (error) {
        counted(error instanceof RequestError ? error.status : 500);
        throw error;
      }
    });
  }
  return {
    fetch: (request, connection) => app.fetch(request, connection),
    drain: () => requests.drain(),
  };
}

/** Counts requests, and rejects those beyond the limits. */
class RequestGate {
  readonly #served: Served;
  readonly #options: AppOptions;
  #open = 0;
  #draining = false;
  readonly #idle: (() => void)[] = [];

  constructor(served: Served, options: AppOptions) {
    this.#served = served;
    this.#options = options;
  }

  /** Why requests are rejected. Undefined if they are accepted. */
  get unavailable(): RequestError | undefined {
    const { failure } = this.#served.loop;
    return this.#draining || failure
      ? new RequestError(
        failure
          ? "Cannot answer: the server has failed and ends. Try again when it has started again"
          : "Cannot answer: the server ends. Try again when it has started again",
        { kind: "unavailable" },
      )
      : undefined;
  }

  async drain(): Promise<void> {
    this.#draining = true;
    if (this.#open === 0) return;
    await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** `counted` is called with the status of a response once it ends. Failed requests throw an error instead. */
  async answer(
    c: Context<{ Bindings: Connection }>,
    prepare: Prepare,
    counted: (status: number) => void,
  ): Promise<Response> {
    this.#check(0);
    this.#open++;
    const controller = new AbortController();
    const abort = (reason: RequestError) => controller.abort(reason);
    const { requestMs, maxBody } = this.#options;
    const timer = setTimeout(() =>
      abort(
        new RequestError(
          `Cannot answer: the request takes longer than ${
            requestMs / 1000
          } s. Ask for fewer tokens, or raise --request-deadline`,
          { kind: "deadline" },
        ),
      ), requestMs);
    const connection = c.env;
    const stay = connection.onLeave(() =>
      abort(
        new RequestError(
          "Cannot answer: the client closed the connection. Keep it open",
          { kind: "closed" },
        ),
      )
    );
    let closed = false;
    const close = () => {
      if (closed) return;
      closed = true;
      clearTimeout(timer);
      stay();
      if (--this.#open > 0) return;
      for (const resolve of this.#idle) resolve();
    };
    const served = this.#served;
    const { signal } = controller;
    try {
      const headers = Object.fromEntries(c.res.headers);
      const body = await readBody(connection, {
        type: c.req.header("content-type") ?? "",
        encoding: c.req.header("content-encoding") ?? "",
        maxBytes: maxBody,
      });
      checkModel(body["model"], served);
      const prepared = await prepare(body, served);
      checkReceipt(prepared, served);
      this.#check(prepared.choices.length);
      if (!prepared.stream) {
        const response = await respondOnce(prepared, { served, signal });
        close();
        counted(200);
        connection.send(JSON.stringify(response), {
          ...headers,
          "content-type": "application/json",
        });
        return connection.sent;
      }
      connection.begin({
        ...headers,
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
      });
      const events = respondStream(prepared, { served, signal });
      void writeEvents(events, { connection, signal }).finally(() => {
        counted(signal.aborted ? signal.reason.status : 200);
        close();
      });
      return connection.sent;
    } catch (error) {
      close();
      throw error;
    }
  }

  /** Throws RequestError if this many further sequences exceed the queue. */
  #check(sequences: number): void {
    const refusal = this.unavailable;
    if (refusal) throw refusal;
    const { maxQueue } = this.#options;
    const { loop } = this.#served;
    const { sequences: present, capacity } = loop;
    const full = present + sequences > maxQueue + capacity;
    if ((present === 0 || !full) && this.#open <= maxQueue + capacity) return;
    throw new RequestError(
      `Cannot answer: ${
        full
          ? `${quantity(present + sequences - capacity, "sequence")} ${
            sequences > 0 ? "would wait" : "wait"
          }`
          : `${this.#open} requests are in progress`
      }, and at most ${
        full ? maxQueue : maxQueue + capacity
      } may. Try again later`,
      { kind: "busy", code: "queue_full" },
    );
  }
}

/** Writes events to a response, no faster than the client reads them. Resolves once no more are needed. */
async function writeEvents(
  events: AsyncIterable<string>,
  { connection, signal }: {
    readonly connection: Connection;
    /** Aborted if the client has disconnected or the request takes too long. */
    readonly signal: AbortSignal;
  },
): Promise<void> {
  try {
    for await (const text of events) {
      if (connection.closed) return;
      if (connection.write(text)) continue;
      await connection.drained(signal);
      // A client that reads nothing receives no reason.
      if (signal.aborted) break;
    }
    connection.end();
  } catch (error) {
    connection.abort(error as Error);
  }
}

function failed(c: Context, error: unknown): Response {
  const known = error instanceof RequestError ? error : new RequestError(
    `Cannot answer: an unexpected error, '${
      error instanceof Error ? error.message : String(error)
    }'. Report this as a bug, with the request`,
    { kind: "internal" },
  );
  for (const [name, value] of Object.entries(known.headers)) {
    c.header(name, value);
  }
  return c.json(known.body, known.status as 400);
}

function checkModel(name: unknown, served: Served): void {
  if (name === undefined || name === null || name === served.name) return;
  throw new RequestError(
    `Cannot use model '${
      String(name).slice(0, 200)
    }': it is not served. Use '${served.name}'`,
    { kind: "unknown", param: "model", code: "model_not_found" },
  );
}

/** Rejects requests for other hosts (DNS rebinding). */
function checkHost(hosts: readonly string[]) {
  const known = hosts.map((host) => host.toLowerCase());
  return async (c: Context, next: () => Promise<void>): Promise<void> => {
    const host = (c.req.header("host") ?? "").replace(/:\d+$/, "");
    if (!known.includes(host.toLowerCase())) {
      throw new RequestError(
        "Cannot answer: the request is for another host. Use the address that the server printed",
        { kind: "forbidden" },
      );
    }
    await next();
  };
}

/** Rejects requests without one of the keys. Digests are compared in constant time. */
async function checkKey(keys: readonly string[]) {
  const digests = await Promise.all(keys.map((key) => sha256(key)));
  return async (c: Context, next: () => Promise<void>): Promise<void> => {
    if (digests.length === 0) return await next();
    const [, key = ""] = /^Bearer (.*)$/i.exec(
      c.req.header("authorization") ?? "",
    ) ?? [];
    const digest = await sha256(key);
    let found = false;
    for (const known of digests) found = sameDigest(known, digest) || found;
    if (!found) {
      throw new RequestError(
        "Cannot answer: the API key is missing or wrong. Send the header 'Authorization: Bearer KEY'",
        { kind: "key", code: "invalid_api_key" },
      );
    }
    await next();
  };
}

function sameDigest(a: string, b: string): boolean {
  let difference = a.length ^ b.length;
  for (let i = 0; i < a.length; i++) {
    difference |= a.charCodeAt(i) ^ b.charCodeAt(i);
  }
  return difference === 0;
}
