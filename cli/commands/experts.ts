/** `--experts`: the choice of experts in predicted steps. */

import {
  CHOICES,
  type ExpertLoad,
  readTensors,
  recordedLoad,
} from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";

/** Reads `even`, `zipf:S`, or the outputs of a run. Throws DataError if a file contains no choices. */
export async function expertLoad(
  io: CliIo,
  text: string | undefined,
): Promise<ExpertLoad> {
  if (text === undefined || text === "even") return { kind: "even" };
  const exponent = /^zipf:(\d+(?:\.\d+)?)$/.exec(text)?.[1];
  return exponent === undefined
    ? recordedLoad(
      await readTensors(text, io.files, {
        wanted: (name) => CHOICES.test(name),
      }),
    )
    : { kind: "zipf", exponent: Number(exponent) };
}
