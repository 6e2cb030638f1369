/** `switchyard launch`: ranks as MPI processes. */

import { MachineError } from "../../spec/mod.ts";

/** Say that there is no MPI yet. */
export function launchCommand(): never {
  throw new MachineError(
    "Cannot launch ranks: MPI is not supported yet. Use --devices shared or separate",
  );
}
