/** Class `model`: a plan with a mutated model is rejected quickly, unless it compiles to the same plan. */

import {
  compileDocumented,
  whyNotCompiled,
} from "../../engine/compiled_from.ts";
import { PlanError } from "../../spec/errors.ts";
import { publishedModel } from "../../models/published.ts";
import { readFileSync } from "node:fs";
import path from "node:path";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import type { FuzzClass } from "./fuzz.ts";
import { type JsonChange, jsonChanges, mutateJson } from "./json_mutant.ts";
import { acceptedOrRefused } from "./refusal.ts";

/** Mutants of the model documents of plans. */
export function modelClass(): FuzzClass<readonly JsonChange[]> {
  const file = path.join(checkpointFolder("mixtral-6e"), "config.json");
  const config = {
    ...JSON.parse(readFileSync(file, "utf8")),
    num_hidden_layers: 1,
  };
  const model = publishedModel(config)
    .build({ maxTokens: 4, maxSequences: 1, maxContext: 8 });
  const plan = compileDocumented(model, { options: { mesh: { ep: 2 } } });
  return {
    name: "model",
    count: 1000,
    cases: jsonChanges,
    judge: async (changes) => {
      const { compiledFrom, ...rest } = await plan;
      return await acceptedOrRefused("A model in a plan", async () => {
        const mutant = mutateJson(compiledFrom!, changes);
        // Without a sandbox, whose process takes longer to start than most cases.
        const why = await whyNotCompiled({
          ...rest,
          compiledFrom: mutant as NonNullable<typeof compiledFrom>,
        });
        if (why !== undefined) throw new PlanError(`Cannot run it: ${why}`);
      });
    },
    close: () => Promise.resolve(),
  };
}
