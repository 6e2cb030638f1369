/** The plan of a checkpoint's layer that predicts a further token, on the devices of its decoder. */

import { sourceNames } from "../../spec/axis_parts.ts";
import { DataError, PlacementError } from "../../spec/errors.ts";
import { stageAxis } from "../../spec/mesh.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import type { Companion } from "../companions.ts";
import type { FileSystem } from "../files.ts";
import { compileTarget, storedWeights } from "../open.ts";
import { pagesShape } from "./pages_shape.ts";
import type { Published } from "../target.ts";

/** The companion of a decoder that returns hidden states. Its caches have the pages of the decoder. */
export function predictorCompanion(
  target: Published,
  files: FileSystem,
): Companion {
  return {
    shares: true,
    plan: async (options, main) => {
      if (stageAxis(main.mesh)) {
        throw new PlacementError(
          "Cannot draft with multi-token prediction on pipeline stages: the layer has one stage. Use a mesh without pp, or draft by lookup",
        );
      }
      return await compileTarget(target, await storedWeights(target, files), {
        ...options,
        ...pagesOf(main),
        next: { candidates: 1, hidden: true, predicts: true },
      });
    },
    tensors: ({ tensors }, plan) => {
      const missing = plan.weights.flatMap((one) => sourceNames(plan, one))
        .find((name) => !tensors.has(name));
      if (missing === undefined) return Promise.resolve(tensors);
      throw new DataError(
        `Cannot draft with multi-token prediction: the checkpoint has no tensor '${missing}'. Draft by lookup or with another checkpoint`,
      );
    },
  };
}

/** The pages of a decoder's layers that see all positions. */
function pagesOf(
  main: Plan,
): { readonly pages?: { readonly count: number; readonly size: number } } {
  const shape = pagesShape(main, main.programs[0]!);
  if (!shape) return {};
  const count = Math.max(...shape.groups.map(({ count }) => count));
  return { pages: { count, size: shape.size } };
}
