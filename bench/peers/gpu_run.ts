/** Shared code of the comparisons on an adapter. */

import type { GpuAdapter } from "../../runtime/mod.ts";
import { loadOrt, type Ort, type OrtSession } from "./install.ts";

/** Options of a comparison on an adapter. */
export interface GpuRun {
  readonly adapter: GpuAdapter;
  /** Maximum host threads of each side. */
  readonly threads: number;
  readonly pairs: number;
  readonly warmUp: number;
  /** A folder for files, removed afterwards. */
  readonly folder: string;
}

/** Opens an onnxruntime model on its WebGPU provider. Unsupported operators run on its CPU provider. */
export async function openOrtSession(
  model: Uint8Array,
): Promise<{ session: OrtSession; Tensor: Ort["Tensor"] }> {
  const { InferenceSession, Tensor } = loadOrt();
  const session = await InferenceSession.create(model, {
    executionProviders: ["webgpu"],
    // Operators run on the CPU intentionally.
    logSeverityLevel: 3,
  });
  return { session, Tensor };
}
