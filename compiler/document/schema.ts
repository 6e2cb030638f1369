/**
 * Schemas of documents: those of the types, with the options and dtypes of tables. They bound every number that costs
 * compile time or memory.
 */

import {
  oneOf,
  type Schema,
  withProperties,
} from "../../spec/document/schema.ts";
import { STORED_BYTES } from "../../spec/dtype.ts";
import { PACKED_DTYPES } from "../../spec/weights/packed.ts";
import { STRATEGY_ENTRIES } from "../../spec/strategies.ts";
import { modelSchema } from "./schemas.ts";

/** Storage dtypes of parameters. */
const stored = oneOf(
  ...Object.keys(STORED_BYTES).filter((dtype) => dtype !== "u8"),
  ...PACKED_DTYPES,
);

function strategySchema(option: typeof STRATEGY_ENTRIES[number][1]): Schema {
  switch (option.kind) {
    case "flag":
      return { type: "boolean" };
    case "text":
      return { type: "string", pattern: option.pattern };
    case "count":
      return { type: "integer", minimum: 1, maximum: option.max };
    case "word":
      return oneOf(...option.words);
  }
}

/** A document. Nodes have a separate schema. */
export const documentSchema: Schema = withProperties(
  {
    ...modelSchema,
    definitions: { ...modelSchema["definitions"]!, FileDType: stored },
  },
  ({ options }) => ({
    options: withProperties(options!, () =>
      Object.fromEntries(
        STRATEGY_ENTRIES.map((
          [name, option],
        ) => [name, strategySchema(option)]),
      )),
  }),
);
