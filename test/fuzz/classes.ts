/** The classes of `npm run fuzz`. */

import type { FuzzClass } from "./fuzz.ts";
import { kernelClass } from "./kernel.ts";
import { planClass } from "./plan.ts";

/** By name, made when they are asked for. */
export const CLASSES: {
  readonly [name: string]: () => FuzzClass<unknown>;
} = {
  kernel: () => kernelClass() as FuzzClass<unknown>,
  plan: () => planClass() as FuzzClass<unknown>,
};
