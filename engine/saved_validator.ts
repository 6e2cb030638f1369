/** Schema errors of saved files. scripts/validators.mjs generates this for bundled programs. */

import { holdsOf } from "../spec/document/hold.ts";
import { trainingSchema, tuningSchema } from "./saved_schemas.ts";

/** Errors of a file of tunings. */
export const tuningErrors = holdsOf(tuningSchema);

/** Errors of the training metadata in the index of a checkpoint. */
export const trainingErrors = holdsOf(trainingSchema);
