/**
 * Selection of the k largest of a few values by one invocation: k passes, each for the best that comes after the last one
 * in the order "value descending, index ascending". Nothing is marked as taken, and ties have one order.
 */

import {
  type KernelText,
  type Statements,
  wgsl,
} from "../../../spec/kernel/text.ts";

/** What is chosen from: values of the candidates `e` below `count`. */
export interface Candidates {
  readonly count: number;
  /** The f32 value of candidate `e`. */
  readonly value: KernelText;
  /** What comes before the value is taken. */
  readonly prepare?: Statements;
  /** Whether candidate `e`, whose value is `candidate`, may be chosen. Default: all. */
  readonly allowed?: KernelText | undefined;
}

/** `name` becomes the allowed candidate with the largest value, the lowest of equals; `name`_value its value. */
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
    // Only values that are not numbers leave nothing to choose; the index stays legal.
    ${name} = min(${name}, ${count - 1});`;
}

/** Runs `then` for the choices j = 0 .. k - 1 in `name`, by value descending, index ascending. */
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
