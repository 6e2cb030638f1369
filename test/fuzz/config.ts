/** Class `config`: a mutated config.json is rejected, or its model can be traced. */

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { paramFacts, trace } from "../../compiler/mod.ts";
import { configurationOf } from "../../engine/checkpoint/configuration.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import type { FuzzClass } from "./fuzz.ts";
import { type JsonChange, jsonChanges, mutateJson } from "./json_mutant.ts";
import { acceptedOrRefused } from "./refusal.ts";

interface Case {
  /** Index of the configuration. */
  readonly of: number;
  readonly changes: readonly JsonChange[];
}

const BOUNDS = { maxTokens: 4, maxSequences: 1, maxContext: 8 };

/** Reads the configurations of all families. */
function configurations(): { readonly [key: string]: unknown }[] {
  const references = path.dirname(checkpointFolder("mixtral-6e"));
  return readdirSync(references).sort()
    .map((name) => path.join(references, name, "config.json"))
    .flatMap((file) => {
      try {
        return [JSON.parse(readFileSync(file, "utf8"))];
      } catch {
        // The folder has no configuration.
        return [];
      }
    });
}

/** Mutants of configurations of published models. */
export function configClass(): FuzzClass<Case> {
  const configs = configurations();
  return {
    name: "config",
    count: 2000,
    cases: fc.record({ of: fc.nat(configs.length - 1), changes: jsonChanges }),
    judge: async ({ of, changes }) =>
      await acceptedOrRefused("A configuration", () => {
        const mutant = mutateJson(configs[of]!, changes);
        const { published, storedAs } = configurationOf(
          mutant as { readonly [key: string]: unknown },
          "config.json",
        );
        storedAs();
        paramFacts(trace(published.build(BOUNDS)));
        return Promise.resolve();
      }),
    close: () => Promise.resolve(),
  };
}
