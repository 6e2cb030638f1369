/** Routes of a server, with access control and limits. */

import { type Context, Hono } from "hono";
import { cors } from "hono/cors";
import { sha256 } from "../digest.ts";
import { readBody } from "./body.ts";
import { prepareChat } from "./chat_completions.ts";
import { prepareCompletion } from "./completions.ts";
import { RequestError } from "./errors.ts";
import type { Prepared } from "./format.ts";
import { respondOnce, respondStream } from "./respond.ts";
import { prepareResponse } from "./responses.ts";
import type { Served } from "./served.ts";

/** Access control and limits of a server. */
export interface AppOptions {
  /** API keys, one of which requests must have. Empty: no key is required. */
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
  readonly fetch: (request: Request) => Response | Promise<Response>;
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

/** What the policy in the page cannot state. */
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
  const app = new Hono();
  const requests = new RequestGate(served, options);
  app.onError((error, c) => failed(c, error));
  app.notFound((c) =>
    failed(
      c,
      new RequestError(
        `Cannot answer ${c.req.method} ${c.req.path}: there is no such address. See docs/serve.md`,
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
    fetch: (request) => app.fetch(request),
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
    c: Context,
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
    const leave = () =>
      abort(
        new RequestError(
          "Cannot answer: the client closed the connection. Keep it open",
          { kind: "closed" },
        ),
      );
    const { signal: connection } = c.req.raw;
    connection.addEventListener("abort", leave);
    let closed = false;
    const close = () => {
      if (closed) return;
      closed = true;
      clearTimeout(timer);
      // Otherwise the platform would retain the request.
      connection.removeEventListener("abort", leave);
      if (--this.#open > 0) return;
      for (const resolve of this.#idle) resolve();
    };
    const served = this.#served;
    const { signal } = controller;
    try {
      const body = await readBody(c.req.raw, maxBody);
      checkModel(body["model"], served);
      const prepared = await prepare(body, served);
      this.#check(prepared.choices.length);
      if (!prepared.stream) {
        const response = await respondOnce(prepared, { served, signal });
        close();
        counted(200);
        return c.json(response);
      }
      const events = respondStream(prepared, { served, signal });
      return new Response(
        streamOf(events, {
          signal,
          leave,
          ended: () => {
            if (!closed) counted(signal.aborted ? signal.reason.status : 200);
            close();
          },
        }),
        {
          headers: {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
          },
        },
      );
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
        Math.max(0, present - capacity)
      } sequences wait, and at most ${maxQueue} may. Try again later`,
      { kind: "busy", code: "queue_full" },
    );
  }
}

/**
 * Events as the body of a response, produced no faster than they are read. `ended` is called once no more are needed:
 * at the end, if the client disconnects, and if the request is aborted while the client reads nothing.
 */
function streamOf(
  events: AsyncGenerator<string, void, undefined>,
  { signal, leave, ended }: {
    readonly signal: AbortSignal;
    /** Aborts the request after its client has disconnected. */
    readonly leave: () => void;
    readonly ended: () => void;
  },
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let reading = false;
  let open = true;
  const stop = () => {
    open = false;
    ended();
    void events.return();
  };
  return new ReadableStream({
    start(controller) {
      signal.addEventListener("abort", () => {
        // A client that is reading receives the reason.
        if (reading || !open) return;
        stop();
        controller.close();
      });
    },
    async pull(controller) {
      reading = true;
      try {
        const { done, value } = await events.next();
        if (!done) return controller.enqueue(encoder.encode(value));
        open = false;
        ended();
        controller.close();
      } catch (error) {
        open = false;
        ended();
        controller.error(error);
      } finally {
        reading = false;
      }
    },
    cancel: () => {
      open = false;
      leave();
      stop();
    },
  }, { highWaterMark: 0 });
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
  return async (c: Context, next: () => Promise<void>): Promise<void> => {
    const host = (c.req.header("host") ?? "").replace(/:\d+$/, "");
    if (!hosts.includes(host)) {
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
    const [, key = ""] = /^Bearer (.*)$/i.exec(
      c.req.header("authorization") ?? "",
    ) ?? [];
    const digest = await sha256(key);
    let found = digests.length === 0;
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
