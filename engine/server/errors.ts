/** Request errors in the format of OpenAI's API. */

/** Kinds of errors: HTTP status, and `error.type` of the body. */
const KINDS = {
  request: [400, "invalid_request_error"],
  key: [401, "invalid_request_error"],
  forbidden: [403, "invalid_request_error"],
  unknown: [404, "invalid_request_error"],
  method: [405, "invalid_request_error"],
  late: [408, "timeout"],
  size: [413, "invalid_request_error"],
  media: [415, "invalid_request_error"],
  busy: [429, "rate_limit_error"],
  headers: [431, "invalid_request_error"],
  closed: [499, "request_cancelled"],
  internal: [500, "server_error"],
  unavailable: [503, "server_error"],
  deadline: [504, "timeout"],
} as const satisfies { readonly [kind: string]: readonly [number, string] };

/** A rejected request. */
export class RequestError extends Error {
  override name = "RequestError";
  readonly kind: keyof typeof KINDS;
  readonly param: string | null;
  readonly code: string | null;

  /** `param`: the field of the request; `code`: a word for programs. */
  constructor(
    message: string,
    { kind = "request", param = null, code = null }: {
      readonly kind?: keyof typeof KINDS;
      readonly param?: string | null;
      readonly code?: string | null;
    } = {},
  ) {
    super(message);
    this.kind = kind;
    this.param = param;
    this.code = code;
  }

  /** The HTTP status. */
  get status(): number {
    return KINDS[this.kind][0];
  }

  /** The body of the response. */
  get body(): { readonly error: object } {
    const { message, param, code } = this;
    return { error: { message, type: KINDS[this.kind][1], param, code } };
  }

  /** Headers of the response. */
  get headers(): { readonly [name: string]: string } {
    return this.kind === "busy" || this.kind === "unavailable"
      ? { "retry-after": "1" }
      : this.kind === "key"
      ? { "www-authenticate": "Bearer" }
      : this.kind === "method"
      ? { allow: "POST" }
      : {};
  }
}

/** The response to requests before the model is loaded. */
export function loadingResponse(): Response {
  return responseOf(
    new RequestError(
      "Cannot answer: the model is loading. Try again later",
      { kind: "unavailable", code: "loading" },
    ),
  );
}

/** The response to a request that is not read as HTTP, has no host or has an invalid URL. */
export function malformedResponse(error: Error): Response {
  const { code } = error as { readonly code?: unknown };
  return responseOf(
    code === "HPE_HEADER_OVERFLOW"
      ? new RequestError(
        "Cannot read the request: its headers are too long. Send shorter headers",
        { kind: "headers" },
      )
      : code === "ERR_HTTP_REQUEST_TIMEOUT"
      ? new RequestError(
        "Cannot read the request: it did not arrive in time. Send it again",
        { kind: "late" },
      )
      : new RequestError(
        `Cannot read the request: ${error.message}. Send ${
          String(code).startsWith("HPE_")
            ? "a valid request of HTTP/1.1"
            : "a valid URL and the header 'Host'"
        }`,
      ),
  );
}

function responseOf({ body, status, headers }: RequestError): Response {
  return Response.json(body, { status, headers });
}
