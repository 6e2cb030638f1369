/** Reads the inputs of a target from a file. */

import { trace } from "../compiler/mod.ts";
import { checkInputNames } from "../runtime/mod.ts";
import type { FileSystem } from "./files.ts";
import { BATCH, checkBatchNames, type Tensors } from "./run.ts";
import type { Target } from "./target.ts";
import { readTensors } from "./checkpoint/tensors.ts";

/** Reads the inputs of a target. Other tensors are rejected by name without being read. */
export async function readInputs(
  path: string,
  files: FileSystem,
  { target }: { readonly target: Target },
): Promise<Tensors> {
  const program = programOf(target);
  return await readTensors(path, files, {
    wanted: (name) => {
      if (BATCH.includes(name)) return true;
      if (program) checkInputNames(program, [name]);
      else checkBatchNames([name]);
      return true;
    },
  });
}

/** The program of a target and its inputs. Undefined for checkpoints, which take a batch. */
function programOf(
  target: Target,
): Parameters<typeof checkInputNames>[0] | undefined {
  if (target.kind === "plan") return target.plan.programs[0];
  if (target.kind !== "model") return undefined;
  const inputs = trace(target.model).nodes.flatMap(({ primitive, params }) =>
    primitive === "input" ? [[params.name, params] as const] : []
  );
  return { name: "main", inputs: Object.fromEntries(inputs) };
}
