/** Names of options. Callers without types would not notice an unknown one. */

import { DataError } from "./errors.ts";
import { nearName } from "./near_name.ts";
import { shown } from "./shown.ts";

/** All names of the options `O`. */
export type OptionNames<O> = { readonly [N in keyof O]-?: unknown };

/** A message for each option that is not in `names`. `task`: completes "Cannot …", such as "open a model". */
export function unknownOptions(
  task: string,
  options: object,
  names: object,
): string[] {
  const known = Object.keys(names);
  return Object.keys(options).filter((name) => !known.includes(name)).map(
    (name) => {
      const near = nearName(name, known);
      const remedy = near === undefined
        ? `Options are ${known.join(", ")}`
        : `Write '${near}'`;
      return `Cannot ${task} with option '${
        shown(name)
      }': it is unknown. ${remedy}`;
    },
  );
}

/** Throws DataError for an unknown option. */
export function checkOptions<O extends object>(
  task: string,
  options: O,
  names: OptionNames<O>,
): void {
  const [message] = unknownOptions(task, options, names);
  if (message !== undefined) throw new DataError(message);
}
