/** Documents of models: what a plan is compiled from, so that whoever is given a plan can compile it again. */

export { compileDocument } from "./read.ts";
export { modelDocument } from "./write.ts";
export type { DocumentTraining, ModelDocument } from "./document.ts";
