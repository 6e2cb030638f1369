/** What a plan would take on a machine, from the plan itself and a description of the machine. */

import type { FileSystem } from "../files.ts";
import { deviceLimits } from "../devices.ts";
import {
  type Machine,
  machineRanks,
  parseMachine,
  placeRanks,
} from "../../spec/machine.ts";
import type { Mesh } from "../../spec/mesh.ts";
import { type PlanOptions, planTarget } from "../open.ts";
import type { Target } from "../target.ts";
import { TUNING } from "../tuning.ts";
import { type Compared, comparePredictions } from "./explain.ts";
import { predictStep } from "./predict.ts";
import type { SceneOptions } from "./scene.ts";

export { type Compared, meshName, sizeText } from "./explain.ts";
export {
  type Parts,
  type PredictedLayer,
  type Prediction,
  predictStep,
} from "./predict.ts";
export { recordedChoices } from "./choices.ts";
export type { SceneOptions } from "./scene.ts";

/** How meshes are compared. */
export interface PredictOptions extends PlanOptions {
  readonly scene: SceneOptions;
  /** Default: `ep` of 1, 2, 4, … up to the ranks of the machine. */
  readonly meshes?: readonly Mesh[];
}

/** Read a machine file. */
export async function readMachine(
  path: string,
  files: FileSystem,
): Promise<Machine> {
  return parseMachine(await files.readText(path), path);
}

/** Compile a target for each mesh, and compare the times of a step. A saved plan has its own mesh. */
export async function predictTarget(
  target: Target,
  { machine, files, ...options }: PredictOptions & {
    readonly machine: Machine;
    readonly files: FileSystem;
  },
): Promise<Compared[]> {
  const { scene, meshes = defaultMeshes(machine), ...plan } = options;
  const { tokens, sequences = 1, past = 0 } = scene;
  const context = past + Math.ceil(tokens / sequences);
  const need = { tokens, sequences, context };
  const device = machine.devices[placeRanks(machine)[0]!.kind]!;
  const limits = deviceLimits(device);
  const predictions = [];
  for (const mesh of target.kind === "plan" ? [undefined] : meshes) {
    const compiled = await planTarget(target, files, {
      need,
      tuning: TUNING[device.computer ?? "gpu"],
      ...limits ? { limits } : {},
      ...plan,
      ...mesh ? { mesh } : {},
    });
    predictions.push(predictStep(compiled, machine, scene));
  }
  return comparePredictions(predictions);
}

function defaultMeshes(machine: Machine): Mesh[] {
  const most = machineRanks(machine);
  const meshes: Mesh[] = [];
  for (let size = 1; size <= most; size *= 2) {
    meshes.push([{ name: "ep", size }]);
  }
  return meshes;
}
