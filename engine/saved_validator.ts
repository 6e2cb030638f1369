/** Schema errors of saved files. scripts/validators.mjs generates this for bundled programs. */

import { holdsOf } from "../spec/document/hold.ts";
import {
  receiptSchema,
  trainingSchema,
  tuningSchema,
} from "./saved_schemas.ts";

/** Errors of a receipt. */
export const receiptErrors = holdsOf(receiptSchema);

/** Errors of a file of tunings. */
export const tuningErrors = holdsOf(tuningSchema);

/** Errors of the training metadata in the index of a checkpoint. */
export const trainingErrors = holdsOf(trainingSchema);
