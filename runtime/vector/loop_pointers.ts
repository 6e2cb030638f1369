/** Pointers to the rows that a loop loads and stores. */

import { mul } from "../../spec/kernel/build.ts";
import type { Expressions } from "./expression.ts";
import {
  addressOf,
  get,
  isWithin,
  type Local,
  newLocal,
  u,
  type Value,
  word,
} from "./ir.ts";
import { extentOf, type PointerGroup } from "./pointers.ts";
import type { Statements } from "./statement.ts";

/** Bounds of a loop in locals. */
export interface Bounds {
  readonly counter: Local;
  readonly from: Value;
  readonly to: Value;
  readonly step: Value;
  readonly long: boolean;
}

/** A group's pointer, and its stride per iteration. */
export interface Pointer {
  readonly local: Local;
  readonly base: Value;
  readonly stride: Value;
}

/** Sets a pointer to a group's first element. */
export function setPointer(
  group: PointerGroup,
  from: Value,
  on: Statements,
): Pointer {
  const base = on.keepSum("base", group.terms);
  const stride = typeof group.stride === "number"
    ? word(group.stride)
    : on.keepWord(group.stride.reduce((a, b) => mul(a, b)));
  const local = newLocal("p", "pointer");
  const first = u.add(base, u.mul(stride, from));
  on.set(local, addressOf(on.x.memory(group.array), first, group.bytes));
  return { local, base, stride };
}

/** Whether the elements of a group are in bounds, up to those of the last iteration. */
export function within(
  group: PointerGroup,
  { base, stride }: Pointer,
  { last, on }: { readonly last: Value; readonly on: Statements },
): Value {
  return isWithin(on.x.memory(group.array), [base, stride, last], {
    constant: extentOf(group, on.x.shapes.lanes),
    bytes: group.bytes,
  });
}

/** Advances a pointer by a number of elements. */
export function advance(
  pointer: Local,
  elements: Value,
  { on, bytes }: { readonly on: Statements; readonly bytes: boolean },
): void {
  on.set(pointer, addressOf(get(pointer), elements, bytes), false);
}

/** Sets the loads of an iteration after that of the pointers, which advance `by` elements in each. */
export function pointLoads(
  groups: readonly (Pick<PointerGroup, "loads" | "apart"> & {
    readonly pointer: Local;
    readonly by: number;
  })[],
  iteration: number,
  { pointed }: Expressions,
): void {
  for (const { loads, apart, pointer, by } of groups) {
    for (const [load, constant] of loads) {
      pointed.set(load, { pointer, offset: constant + iteration * by, apart });
    }
  }
}

/** Removes pointers of loads and stores. */
export function forget(groups: readonly PointerGroup[], on: Statements): void {
  for (const { loads, stores } of groups) {
    for (const load of loads.keys()) on.x.pointed.delete(load);
    for (const store of stores.keys()) on.stored.delete(store);
  }
}

/** The last value of a counter if its bounds are constant, otherwise an upper bound. */
export function lastOf({ from, to, step }: Bounds): Value {
  const [first, end, by] = [from, to, step].map((bound) =>
    bound.op === "const" ? Number(bound.value) : NaN
  ) as [number, number, number];
  const last = first + Math.floor((end - 1 - first) / by) * by;
  return last >= first ? word(last) : u.sub(to, 1);
}
