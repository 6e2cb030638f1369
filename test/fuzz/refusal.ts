/** Checks that invalid files are rejected quickly, with a message of one of our error classes. */

import process from "node:process";
import {
  DataError,
  MachineError,
  ModelError,
  PlanError,
} from "../../spec/mod.ts";
import { Finding } from "./fuzz.ts";

/** Maximum seconds of CPU time and of wall time of a case. */
const MAX_SECONDS = 10;

const EXPECTED = [DataError, MachineError, ModelError, PlanError];

/** Whether a text has control characters of terminals. */
function controls(text: string): boolean {
  // deno-lint-ignore no-control-regex
  return /[\u0000-\u001f\u007f]/.test(text);
}

/** Throws a Finding for a range outside of a file. */
export function checkRange(
  file: Uint8Array,
  from: number,
  length: number,
): void {
  const valid = [from, length].every((n) => Number.isSafeInteger(n) && n >= 0);
  if (valid && from + length <= file.length) return;
  throw new Finding(`${length} bytes at ${from} are read of ${file.length}`);
}

/** Returns "accepted" or "refused". Throws a Finding for any other error, or if it takes too long. */
export async function acceptedOrRefused(
  subject: string,
  action: () => Promise<unknown>,
): Promise<string> {
  const [start, cpu] = [performance.now(), process.cpuUsage()];
  let outcome = "accepted";
  try {
    await action();
  } catch (error) {
    if (error instanceof Finding) throw error;
    const isExpected = EXPECTED.some((known) => error instanceof known);
    const message = error instanceof Error ? error.message : String(error);
    if (!isExpected) {
      const stack = error instanceof Error ? error.stack : "";
      throw new Finding(
        `${subject}: '${message}' is an unexpected error: ${stack}`,
      );
    }
    if (!/^Cannot [a-z].*: .*[^.]$/s.test(message) || controls(message)) {
      throw new Finding(
        `${subject}: ${JSON.stringify(message)} breaks the grammar`,
      );
    }
    outcome = "refused";
  }
  const { user, system } = process.cpuUsage(cpu);
  const seconds = Math.min(
    (user + system) / 1e6,
    (performance.now() - start) / 1000,
  );
  if (seconds <= MAX_SECONDS) return outcome;
  throw new Finding(`${subject}: it takes ${seconds.toFixed(0)} s`);
}
