/** Options that a command line may contain once. */

import type { Command, Option } from "commander";
import { UsageError } from "./values.ts";

/** Adds a check to all commands. Parsing then throws UsageError for a second value of an option that has one. */
export function requireOnce(program: Command): void {
  for (const command of program.commands) {
    for (const option of command.options.filter(hasOneValue)) {
      let given = false;
      command.on(`option:${option.name()}`, () => {
        if (given) {
          throw new UsageError(
            `Cannot use ${option.long} several times: it has one value. Give it once`,
          );
        }
        given = true;
      });
    }
  }
}

/** Whether an option has a value, and its help text does not declare it repeatable. */
function hasOneValue(
  { required, optional, variadic, description }: Option,
): boolean {
  return (required || optional) && !variadic &&
    !description.includes("Repeatable");
}
