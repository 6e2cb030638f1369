/** Prompts of requests as token ids. */

import { DataError } from "../../spec/errors.ts";
import { checkTokens } from "../generation/packing.ts";
import { RequestError } from "./errors.ts";
import type { Served } from "./served.ts";

/**
 * Checks the token ids of a prompt. Throws RequestError for an empty one, unknown ids, and more than the context
 * length.
 */
export function checkPrompt(
  prompt: readonly number[],
  { shape: { vocabulary, maxContext } }: Served,
  param: string,
): void {
  if (prompt.length === 0) {
    throw new RequestError(
      `Cannot use '${param}': it has no tokens. Give it some text`,
      { param },
    );
  }
  if (prompt.length > maxContext) {
    throw new RequestError(
      `Cannot use '${param}': it has ${prompt.length} tokens, and the context has ${maxContext}. Shorten it, or serve with a larger --max-context`,
      { param, code: "context_length_exceeded" },
    );
  }
  inRequest(() =>
    checkTokens(prompt, vocabulary, (at) => `'${param}', token ${at + 1}`)
  );
}

/** Runs an action; DataErrors become request errors. */
function inRequest<R>(action: () => R): R {
  try {
    return action();
  } catch (error) {
    throw requestError(error);
  }
}

/** `inRequest` for an asynchronous action. */
export async function inRequestAsync<R>(action: () => Promise<R>): Promise<R> {
  try {
    return await action();
  } catch (error) {
    throw requestError(error);
  }
}

function requestError(error: unknown): unknown {
  return error instanceof DataError ? new RequestError(error.message) : error;
}
