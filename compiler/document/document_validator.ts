/** Schema errors of a document. scripts/validators.mjs generates this for bundled programs. */

import { holdsOf } from "../../spec/document/hold.ts";
import { documentSchema } from "./schema.ts";
import { modelNodesSchema } from "./schemas.ts";

/** Errors of a document, whose nodes may contain repeats. */
export const documentErrors = holdsOf(documentSchema);

/** Errors of its nodes, with repeats expanded. */
export const nodesErrors = holdsOf(modelNodesSchema);
