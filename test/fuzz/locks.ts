/**
 * Class `locks`: contenders for one lock, with file system calls in any order and random kills. The lock has one owner
 * at a time, at least one contender acquires it, and only killed ones leave files.
 */

import fc from "fast-check";
import {
  BEFORE,
  type Before,
  type LockCase,
  LockModel,
} from "../helpers/lock_model.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";

/** Numbers are taken modulo the number of choices. After the last number, the first contender continues. */
interface Case extends LockCase {
  readonly schedule: readonly number[];
  /** Indices of the choices that are kills. */
  readonly kills: readonly number[];
}

/** Random schedules of 2 to 6 contenders. */
export function locksClass(): FuzzClass<Case> {
  const befores = Object.keys(BEFORE) as Before[];
  return {
    name: "locks",
    count: 2000,
    cases: fc.record({
      contenders: fc.integer({ min: 2, max: 6 }),
      before: fc.constantFrom(...befores),
      links: fc.boolean(),
      schedule: fc.array(fc.nat(1000), { maxLength: 150, size: "max" }),
      kills: fc.array(fc.nat(150), { maxLength: 2 }),
    }),
    async judge({ schedule, kills, ...of }) {
      const model = new LockModel(of);
      await model.begin();
      for (let at = 0; model.problem === undefined; at++) {
        const choices = model.choices(false);
        if (choices.length === 0) break;
        const choice = choices[(schedule[at] ?? 0) % choices.length]!;
        await model.take(kills.includes(at) ? ~choice : choice);
      }
      if (model.problem === undefined) await model.end();
      if (model.problem !== undefined) throw new Finding(model.problem);
      const owners = model.contenders.slice(0, of.contenders)
        .filter(({ state }) => state === "has released").length;
      return `${owners} owners, one after another`;
    },
    close: () => Promise.resolve(),
  };
}
