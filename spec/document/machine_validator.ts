/** What of a machine file does not fit its schema. Bundled programs have this as scripts/validators.mjs writes it. */

import { holdsOf } from "./hold.ts";
import { machineSchema } from "./schemas.ts";

/** Of a machine file. */
export const machineErrors = holdsOf(machineSchema);
