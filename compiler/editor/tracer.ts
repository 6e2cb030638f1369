/** The process that traces model files for an editor. It executes user code in place of the editor's process. */

import process from "node:process";
import { loadUnsaved } from "../source/load.ts";
import { type TracedMistake, traceFile } from "../source/traced.ts";
import { type ShownMesh, type ShownValue, shownValues } from "./values.ts";

/** Request: a file, its text and those of its imports, and a mesh. */
export interface TraceRequest extends ShownMesh {
  readonly id: number;
  readonly path: string;
  readonly texts: readonly (readonly [path: string, text: string])[];
}

/** Result of executing a file. */
export interface TraceAnswer {
  readonly id: number;
  readonly mistakes: readonly TracedMistake[];
  readonly values: readonly ShownValue[];
}

async function answer(request: TraceRequest): Promise<TraceAnswer> {
  const { id, path, texts, mesh, place } = request;
  await loadUnsaved(new Map(texts));
  const { mistakes, models } = await traceFile({ path, name: undefined }, id);
  const shown = { ...mesh ? { mesh } : {}, ...place ? { place } : {} };
  const values = models.flatMap((model) => shownValues(model, shown));
  return { id, mistakes, values };
}

process.on("message", (request: TraceRequest) => {
  answer(request).then((made) => process.send?.(made), () => {
    process.send?.({ id: request.id, mistakes: [], values: [] });
  });
});
process.on("disconnect", () => process.exit());
