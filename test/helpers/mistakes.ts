/** Errors of invalid models. */

import {
  model,
  type Scope,
  type Tensor,
  upTo,
} from "../../compiler/dsl/mod.ts";
import { trace } from "../../compiler/graph/trace.ts";
import { ModelError } from "../../spec/errors.ts";

/** Returns the ModelError that `call` throws. Throws other errors, and if there is none. */
export function errorOf(call: () => unknown): ModelError {
  try {
    call();
  } catch (error) {
    if (error instanceof ModelError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

/** Returns the message of a ModelError, with positions in the test file as `here:line`. */
export function messageOf(call: () => unknown): string {
  return errorOf(call).message.replaceAll(
    new RegExp(`[^ ]*test\\.ts:(\\d+):\\d+`, "g"),
    "here:$1",
  );
}

/** Axes of test models. */
export const SIZES = {
  token: upTo(64),
  embed: 8,
  ffn: 16,
  expert: 4,
  part: 3,
  rest: 5,
  head: 2,
  headDim: 4,
  kvHead: 1,
  sequence: 2,
  context: 16,
} as const;
/** Scope of test models. */
export type M = Scope<keyof typeof SIZES>;

/** Returns the error message of an invalid model. */
export function mistake(build: (m: M) => { [name: string]: Tensor }): string {
  return messageOf(() => trace(model(SIZES, build)));
}
