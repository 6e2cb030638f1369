/** The family whose fields are most like those of a config.json that no family reads. */

import { DataError } from "../compiler/mod.ts";
import { type Config, type Fields, recordFields } from "./config.ts";
import type { Family } from "./family.ts";
import { changesNothing } from "./field_names.ts";

/** Fields that a family has to read of a config.json before it is like it: sizes are in all of them. */
const MIN_LENGTH = 6;

/** Fields that are listed; others are counted. */
const LISTED = 6;

/** A family, and the fields of a config.json that it does not read or accept. */
interface Nearest {
  readonly architecture: string;
  readonly read: number;
  readonly unread: readonly string[];
  /** Values that it does not accept, such as `'hidden_act' is "relu"`. */
  readonly refused: readonly string[];
}

/**
 * A sentence on the family that reads most of the fields of a config.json, with those that it does not read or
 * accept. Undefined if no family is near.
 */
export function nearestFamily(
  families: readonly Family[],
  json: Config,
): string | undefined {
  const text = json["text_config"];
  const config = typeof text === "object" && text !== null
    ? text as Config
    : json;
  const near = families.map((family) => differences(family, config))
    .filter(({ read }) => read >= MIN_LENGTH);
  const valueOf = ({ read, unread, refused }: Nearest) =>
    read - unread.length - refused.length;
  const [best] = near.sort((a, b) => valueOf(b) - valueOf(a));
  if (!best) return undefined;
  const { architecture, unread, refused } = best;
  const differs = [
    ...unread.length > 0 ? [`does not read ${listOf(unread)}`] : [],
    ...refused.length > 0
      ? [`does not accept that ${refused.join(" and ")}`]
      : [],
  ];
  return `Its fields are nearest to those of '${architecture}', which ${
    differs.length > 0 ? differs.join(" and ") : "reads all of them"
  }`;
}

/** The fields that a family reads. Fields that it does not accept are removed one after another. */
function differences(family: Family, json: Config): Nearest {
  const [architecture] = family.architectures as [string, ...string[]];
  const refused: string[] = [];
  let left: Config = { ...json, architectures: [architecture] };
  let fields: Fields = new Map();
  for (let again = true; again;) {
    const recorded = recordFields(left);
    fields = recorded.fields;
    const state = refusedBy(family, recorded.config);
    const field = /^'([^']+)'/.exec(state ?? "")?.[1] ?? "";
    again = left[field] !== undefined;
    if (state !== undefined) refused.push(state);
    left = { ...left, [field]: undefined };
  }
  const keys = Object.keys(json).filter((key) => !changesNothing(key));
  return {
    architecture,
    read: keys.filter((key) => fields.has(key)).length,
    unread: keys.filter((key) => !fields.has(key)),
    refused,
  };
}

/** The first value that a family does not accept, such as `'hidden_act' is "relu"`. Undefined if it accepts all. */
function refusedBy(family: Family, config: Config): string | undefined {
  try {
    family.config(config);
    return undefined;
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    return /^[^:]*: (.*?)(?:\. |, which |$)/.exec(error.message)?.[1] ?? "";
  }
}

function listOf(keys: readonly string[]): string {
  const listed = keys.slice(0, LISTED).map((key) => `'${key}'`).join(", ");
  const more = keys.length - LISTED;
  return more > 0 ? `${listed} and ${more} more` : listed;
}
