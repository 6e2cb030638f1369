/** What the compiler refuses. */

import t from "tap";
import type { CompileOptions, Model } from "../../compiler/mod.ts";
import { ModelError, PlacementError } from "../../spec/errors.ts";
import { compileCase } from "./run_model.ts";

/** Compiling `of` must fail with exactly this message; mistakes of the model also say where: in the test's own file. */
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
      t.match(error.span?.file, /\.test\.ts$/, "at its place");
    } else t.ok(error instanceof PlacementError, "a PlacementError");
    t.equal((error as Error).message, message);
  });
}
