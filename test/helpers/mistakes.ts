/** Models that are wrong, and what is said about them. */

import {
  model,
  type Scope,
  type Tensor,
  upTo,
} from "../../compiler/dsl/mod.ts";
import { trace } from "../../compiler/graph/trace.ts";
import { ModelError } from "../../spec/errors.ts";

/** The error that `call` throws, . */
export function errorOf(call: () => unknown): ModelError {
  try {
    call();
  } catch (error) {
    if (error instanceof ModelError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

/** A message with positions of the test's file as `here:line`. */
export function messageOf(call: () => unknown): string {
  return errorOf(call).message.replaceAll(
    new RegExp(`[^ ]*test\\.ts:(\\d+):\\d+`, "g"),
    "here:$1",
  );
}

/** Axes of the models of tests. */
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
/** What their functions declare with. */
export type M = Scope<keyof typeof SIZES>;

/** The message of a model that is wrong as a whole. */
export function mistake(build: (m: M) => { [name: string]: Tensor }): string {
  return messageOf(() => trace(model(SIZES, build)));
}
