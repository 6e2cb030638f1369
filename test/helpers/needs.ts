/**
 * What tests need of the machine. `npm test -- KIND…` runs files that say they need one of the kinds; what needs another
 * kind in them is skipped.
 */

import process from "node:process";
import { listAdapters } from "../../runtime/mod.ts";

/** The CPU device, a GPU adapter, an MPI, Chromium. A test without any is pure. */
export type Need = "cpu" | "gpu" | "mpi" | "browser";

/** The kinds that were asked for, set by scripts/test_runs.mjs; all where nothing is. */
const ASKED = process.env["SWITCHYARD_TEST_KINDS"]?.split(",");

/** Why tests that need a kind are skipped because others were asked for, or false. */
export function skipUnasked(need: Need): false | string {
  return ASKED === undefined || ASKED.includes(need)
    ? false
    : `only ${ASKED.join(" and ")} tests were asked for`;
}

const [adapter] = await listAdapters();

/** Why tests that need a GPU are skipped here, or false. */
export const skipWithoutGpu: false | string = skipUnasked("gpu") ||
  (adapter ? false : "there is no GPU adapter: install a Vulkan driver");

/** Whether the processor stands in for the GPU. It takes up to seconds to compile a kernel, and each mesh has its own. */
export const gpuIsSoftware: boolean = adapter?.type === "software";
