/** `switchyard view`: a plan as pictures. */

import {
  DARK,
  LIGHT,
  type PictureName,
  PICTURES,
  sceneSvg,
  viewPlan,
} from "../../view/mod.ts";
import type { CliIo } from "../io.ts";
import { findMachine } from "../machines.ts";
import {
  checkSummaryFlags,
  ranksOf,
  summarized,
  type SummaryFlags,
} from "./summarized.ts";

/** Flags of `view`. */
export interface ViewCommandFlags extends SummaryFlags {
  readonly svg: PictureName;
  readonly dark?: boolean;
  readonly out?: string;
}

/** Draw a plan; `--out` writes to a file. */
export async function viewCommand(
  io: CliIo,
  model: string,
  flags: ViewCommandFlags,
): Promise<number> {
  checkSummaryFlags(flags);
  const machine = flags.target === undefined
    ? undefined
    : await findMachine(io, flags.target, ranksOf(flags));
  const { plan } = await summarized(io, model, flags, machine);
  const text = sceneSvg(PICTURES[flags.svg](viewPlan(await plan())), {
    palette: flags.dark ? DARK : LIGHT,
  });
  if (flags.out === undefined) await io.out(`${text}\n`);
  else await io.files.write(flags.out, [new TextEncoder().encode(`${text}\n`)]);
  return 0;
}
