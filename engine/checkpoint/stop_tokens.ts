/** Stop tokens of a checkpoint. */

import { DataError } from "../../spec/errors.ts";
import { configField } from "./config_field.ts";

/** The ids of `eos_token_id` from generation_config.json, else from config.json: a number, a list or null. */
export function stopTokens(
  config: { readonly [key: string]: unknown },
  generation: { readonly [key: string]: unknown },
): ReadonlySet<number> {
  const value = generation["eos_token_id"] ??
    configField(config, "eos_token_id") ?? [];
  const list: readonly unknown[] = Array.isArray(value) ? value : [value];
  return new Set(list.map((id) => {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0) {
      throw new DataError(
        `Cannot read the checkpoint: 'eos_token_id' is ${
          JSON.stringify(value)
        }. It must be a token id or a list of them`,
      );
    }
    return id;
  }));
}
