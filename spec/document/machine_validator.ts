/** Schema errors of a machine file. scripts/validators.mjs generates this for bundled programs. */

import { holdsOf } from "./hold.ts";
import { machineSchema } from "./schemas.ts";

/** Errors of a machine file. */
export const machineErrors = holdsOf(machineSchema);
