/** What comparisons on an adapter share. */

import type { GpuAdapter } from "../../runtime/mod.ts";
import { loadOrt, type Ort, type OrtSession } from "./install.ts";

/** How to compare on an adapter. */
export interface GpuRun {
  readonly adapter: GpuAdapter;
  /** Threads of each side on the host, at most. */
  readonly threads: number;
  readonly pairs: number;
  readonly warmUp: number;
  /** A folder for files, removed afterwards. */
  readonly folder: string;
}

/** A model of onnxruntime on its WebGPU provider; operators that this does not have run on its CPU provider. */
export async function openOrtSession(
  model: Uint8Array,
): Promise<{ session: OrtSession; Tensor: Ort["Tensor"] }> {
  const { InferenceSession, Tensor } = loadOrt();
  const session = await InferenceSession.create(model, {
    executionProviders: ["webgpu"],
    // Operators that run on the CPU are meant to.
    logSeverityLevel: 3,
  });
  return { session, Tensor };
}
