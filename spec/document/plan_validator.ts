/** What of a plan, read from JSON, does not fit its schema. Bundled programs have this as scripts/validators.mjs writes it. */

import { holdsOf } from "./hold.ts";
import { expandedSchema } from "./schemas.ts";

/** Of a plan whose repeats and short forms are expanded. */
export const planErrors = holdsOf(expandedSchema);
