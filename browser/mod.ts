/**
 * Runs plans in a page: on the visitor's GPU through WebGPU, or on the processor through WebAssembly. The module uses
 * no built-in module of Node. A page without a bundler imports it from the package's `dist/browser/mod.js`.
 *
 * @example
 * ```ts
 * const model = await openModel({
 *   plan: await (await fetch("plan.json")).text(),
 *   checkpoint: "models/demo-lm/",
 *   mesh: { ep: 4 },
 * });
 * await model.generate("Once upon a time", { onText: (piece) => document.body.append(piece) });
 * ```
 */

export type { GenerateTextOptions } from "../engine/generation/generate_text.ts";
export { Tracer } from "../runtime/profiler.ts";
export { type BrowserDevice, openDevice } from "./device.ts";
export {
  fileFolder,
  type Folder,
  webFolder,
  type WebFolderOptions,
} from "./folder.ts";
export {
  type BrowserModel,
  openModel,
  type OpenModelOptions,
} from "./model.ts";
