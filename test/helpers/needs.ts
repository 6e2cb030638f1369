/**
 * Requirements of tests. `npm test -- KIND…` runs files that need one of the kinds, and skips their tests that need
 * another.
 */

import process from "node:process";
import { listAdapters } from "../../runtime/mod.ts";
import { isInSoftwareTurn } from "./seed.ts";

/** CPU device, GPU adapter, MPI or Chromium. Tests without any are pure. */
export type Need = "cpu" | "gpu" | "mpi" | "browser";

/** Requested kinds, set by scripts/test_runs.mjs. Undefined: all. */
const REQUESTED = process.env["SWITCHYARD_TEST_KINDS"]?.split(",");

/** Reason to skip tests of a kind that was not requested, or false. */
export function skipUnasked(need: Need): false | string {
  return REQUESTED === undefined || REQUESTED.includes(need)
    ? false
    : `only ${REQUESTED.join(" and ")} tests were requested`;
}

const [adapter] = await listAdapters();

/** Reason to skip tests that need a GPU, or false. */
export const skipWithoutGpu: false | string = skipUnasked("gpu") ||
  (adapter ? false : "there is no GPU adapter: install a Vulkan driver");

/** Whether the GPU is a software adapter, which takes up to seconds to compile a kernel. */
export const gpuIsSoftware: boolean = adapter?.type === "software";

/** Whether a test runs on the GPU in this run: on a software GPU, in a fifth of runs. */
export function isInGpuTurn(name: string): boolean {
  return !gpuIsSoftware || isInSoftwareTurn(name);
}

/** The devices that run a test in this run: the CPU, and the GPU in its turn. */
export function devicesInTurn(name: string): readonly ("cpu" | "gpu")[] {
  return isInGpuTurn(name) ? ["cpu", "gpu"] : ["cpu"];
}
