/** What of a document does not fit its schema. Bundled programs have this as scripts/validators.mjs writes it. */

import { holdsOf } from "../../spec/document/hold.ts";
import { documentSchema, nodesSchema } from "./schema.ts";

/** Of a document, whose nodes may repeat. */
export const documentErrors = holdsOf(documentSchema);

/** Of its nodes, repeats expanded. */
export const nodesErrors = holdsOf(nodesSchema);
