/** Schema errors of a request body. scripts/validators.mjs generates this for bundled programs. */

import { holdsOf } from "../../spec/document/hold.ts";
import {
  chatSchema,
  completionSchema,
  responseSchema,
} from "./request_schemas.ts";

/** Errors of `/v1/completions`. */
export const completionErrors = holdsOf(completionSchema);

/** Errors of `/v1/chat/completions`. */
export const chatErrors = holdsOf(chatSchema);

/** Errors of `/v1/responses`. */
export const responseErrors = holdsOf(responseSchema);
