/** What a class makes of files that are refused: a sentence of an own class of errors, in little time. */

import process from "node:process";
import {
  DataError,
  MachineError,
  ModelError,
  PlanError,
} from "../../spec/mod.ts";
import { Finding } from "./fuzz.ts";

/** Seconds of CPU time and of the clock that a case may take. */
const MAX_SECONDS = 10;

const OWN = [DataError, MachineError, ModelError, PlanError];

/** Whether a text has characters that terminals take for commands. */
function controls(text: string): boolean {
  // deno-lint-ignore no-control-regex
  return /[\u0000-\u001f\u007f]/.test(text);
}

/** Throws a Finding for bytes that are not in a file. */
export function checkRange(
  file: Uint8Array,
  from: number,
  length: number,
): void {
  const whole = [from, length].every((n) => Number.isSafeInteger(n) && n >= 0);
  if (whole && from + length <= file.length) return;
  throw new Finding(`${length} bytes at ${from} are read of ${file.length}`);
}

/** `accepted`, or `refused`; throws a Finding for any other error, or where it takes too long. */
export async function acceptedOrRefused(
  what: string,
  action: () => Promise<unknown>,
): Promise<string> {
  const [start, cpu] = [performance.now(), process.cpuUsage()];
  let outcome = "accepted";
  try {
    await action();
  } catch (error) {
    if (error instanceof Finding) throw error;
    const own = OWN.some((known) => error instanceof known);
    const message = error instanceof Error ? error.message : String(error);
    if (!own) {
      const stack = error instanceof Error ? error.stack : "";
      throw new Finding(`${what}: '${message}' has no sentence: ${stack}`);
    }
    if (!/^Cannot [a-z].*: .*[^.]$/s.test(message) || controls(message)) {
      throw new Finding(`${what}: ${JSON.stringify(message)} is no sentence`);
    }
    outcome = "refused";
  }
  const { user, system } = process.cpuUsage(cpu);
  const seconds = Math.min(
    (user + system) / 1e6,
    (performance.now() - start) / 1000,
  );
  if (seconds <= MAX_SECONDS) return outcome;
  throw new Finding(`${what}: it takes ${seconds.toFixed(0)} s`);
}
