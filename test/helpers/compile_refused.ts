/** Checks of models and options that the compiler rejects. */

import t from "tap";
import type { CompileOptions, Model } from "../../compiler/mod.ts";
import { ModelError, PlacementError } from "../../spec/errors.ts";
import { compileCase } from "./run_model.ts";

/** Fails unless compiling `of` throws exactly this message. A ModelError must also have a span in the test file. */
export function compileRefused(
  name: string,
  of: Model,
  options: CompileOptions,
  message: string,
): void {
  t.test(name, async (t) => {
    const error: unknown = await compileCase({ model: of }, options)
      .catch((error: unknown) => error);
    if (error instanceof ModelError) {
      t.match(error.span?.file, /\.test\.ts$/, "span in the test file");
    } else t.ok(error instanceof PlacementError, "a PlacementError");
    t.equal((error as Error).message, message);
  });
}
