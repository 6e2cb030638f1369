/**
 * Selection of the k largest of a few values by one invocation: k passes, each for the best value after the previous
 * one in the order "value descending, index ascending". No marks are needed, and ties have one order.
 */

import {
  type KernelText,
  type Statements,
  wgsl,
} from "../../../spec/kernel/text/text.ts";

/** Candidates: values of `e` below `count`. */
export interface Candidates {
  readonly count: number;
  /** The f32 value of candidate `e`. */
  readonly value: KernelText;
  /** Code before the value is read. */
  readonly prepare?: Statements;
  /** Whether candidate `e` with value `candidate` may be chosen. Default: all. */
  readonly allowed?: KernelText | undefined;
}

/**
 * `name` becomes the allowed candidate with the largest value, the lowest index among equals; `name`_value its value.
 */
export function largest(
  name: string,
  { count, value, prepare, allowed = wgsl`true` }: Candidates,
): KernelText {
  return wgsl`
    var ${name} = ${count}u;
    var ${name}_value = 0.0;
    for (var e = 0u; e < ${count}; e++) {
      ${prepare}
      let candidate = ${value};
      if (${allowed} && (${name} == ${count} || candidate > ${name}_value)) {
        ${name} = e;
        ${name}_value = candidate;
      }
    }
    // Only NaN values leave nothing to choose; the index stays in bounds.
    ${name} = min(${name}, ${count - 1});`;
}

/** Executes `then` for the choices j = 0 .. k - 1 in `name`, by value descending, then index ascending. */
export function eachLargest(
  name: string,
  { k, ...from }: Candidates & { readonly k: number },
  then: Statements,
): KernelText {
  const next = wgsl`j == 0 || (candidate < last_${name}_value
    || (candidate == last_${name}_value && e > last_${name}))`;
  const allowed = from.allowed ? wgsl`${from.allowed} && ${next}` : next;
  return wgsl`
    var last_${name} = 0u;
    var last_${name}_value = 0.0;
    for (var j = 0u; j < ${k}; j++) {
      ${largest(name, { ...from, allowed })}
      last_${name} = ${name};
      last_${name}_value = ${name}_value;
      ${then}
    }`;
}
