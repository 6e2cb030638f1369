/** The classes of `npm run fuzz`. */

import type { FuzzClass } from "./fuzz.ts";
import { planClass } from "./plan.ts";

/** By name, made when they are asked for. */
export const CLASSES: {
  readonly [name: string]: () => FuzzClass<unknown>;
} = {
  plan: () => planClass() as FuzzClass<unknown>,
};
