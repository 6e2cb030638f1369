/** Documents of models: a plan includes its source, so that any reader can compile it again. */

export { compileDocument } from "./read.ts";
export { modelDocument } from "./write.ts";
export type { DocumentTraining, ModelDocument } from "./document.ts";
