/** Checks of file contents. */

import type { TensorEntry } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";

/** Checks codes of E4M3 for NaN. Throws DataError for one. */
export function refuseNaN(entry: TensorEntry, codes: Uint8Array): Uint8Array {
  const bad = codes.findIndex((code) => (code & 127) === 127);
  if (bad < 0) return codes;
  throw new DataError(
    `Cannot read tensor '${
      shown(entry.name)
    }' of '${entry.source.name}': element ${bad} is not a finite number. Get the file again`,
  );
}

/** An error for a known but unsupported storage of a tensor. */
export function unsupported(entry: TensorEntry, state: string): DataError {
  return new DataError(
    `Cannot read tensor '${
      shown(entry.name)
    }' of '${entry.source.name}': ${state}. Use another quantization of the model`,
  );
}
