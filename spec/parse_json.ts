/** Parser of untrusted JSON with a limit of nesting, so that no traversal overflows the stack. */

/** Maximum nesting. */
export const MAX_DEPTH = 500;

/** Text that is not JSON, or is nested too deeply. */
export class JsonError extends SyntaxError {
  override name = "JsonError";
  /** The error as a predicate: `is not JSON`. */
  readonly state: string;
  constructor(
    { state, ...options }: ErrorOptions & { readonly state: string },
  ) {
    super(`Cannot parse JSON: it ${state}`, options);
    this.state = state;
  }
}

/** Parses JSON. Throws JsonError. */
export function parseJson(text: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new JsonError({ state: "is not JSON", cause: error });
  }
  if (pathOfDeep(value) === undefined) return value;
  throw new JsonError({ state: `is nested deeper than ${MAX_DEPTH} levels` });
}

/** The JSON pointer to a value that is nested too deeply. `depth`: the depth of `value`. */
export function pathOfDeep(value: unknown, depth = 0): string | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  if (depth > MAX_DEPTH) return "";
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) {
      const path = pathOfDeep(value[i], depth + 1);
      if (path !== undefined) return `/${i}${path}`;
    }
    return undefined;
  }
  for (const key in value) {
    const path = pathOfDeep(value[key as keyof object], depth + 1);
    if (path !== undefined) return `/${key}${path}`;
  }
  return undefined;
}
