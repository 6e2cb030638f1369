/** Schema errors of a plan parsed from JSON. scripts/validators.mjs generates this for bundled programs. */

import { holdsOf } from "./hold.ts";
import { expandedSchema } from "./schemas.ts";

/** Errors of a plan with expanded repeats and short forms. */
export const planErrors = holdsOf(expandedSchema);
