/** What of a request body does not fit its schema. Bundled programs have this as scripts/validators.mjs writes it. */

import { holdsOf } from "../../spec/document/hold.ts";
import { chatSchema, completionSchema } from "./request_schemas.ts";

/** Of `/v1/completions`. */
export const completionErrors = holdsOf(completionSchema);

/** Of `/v1/chat/completions`. */
export const chatErrors = holdsOf(chatSchema);
