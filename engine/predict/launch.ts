/** What a launch does on a rank: its kernel's work over all invocations. */

import type { Kernel } from "../../spec/kernel/tree.ts";
import { kernelWork } from "../../spec/kernel/work.ts";
import type { Known } from "./known.ts";

/** The work of all invocations of a launch. */
export interface LaunchWork {
  readonly workgroups: number;
  readonly multiplyAdds: number;
  readonly operations: number;
  /** Bytes moved between invocations and bindings, by binding. */
  readonly loads: readonly number[];
  readonly stores: readonly number[];
  readonly exact: boolean;
}

/** Workgroups along each side of a launch that are looked at. */
const ALONG = 32;

/** Invocations of a workgroup that are looked at where not all do the same. */
const LANES = 8;

/** Counts the work of launches; equal launches are counted once. */
export class LaunchCounter {
  readonly #counted = new Map<Kernel, Map<string, LaunchWork>>();

  /** Count a launch of `kernel`; `known` is what its bindings hold, as far as that is known. */
  count(
    kernel: Kernel,
    size: readonly [number, number, number],
    known: readonly (Known | undefined)[],
  ): LaunchWork {
    const counted = this.#counted.get(kernel) ?? new Map<string, LaunchWork>();
    this.#counted.set(kernel, counted);
    const key = [...size, ...known.map((data) => data?.id)].join();
    const work = counted.get(key) ?? countLaunch(kernel, size, known);
    counted.set(key, work);
    return work;
  }
}

function countLaunch(
  kernel: Kernel,
  size: readonly [number, number, number],
  known: readonly (Known | undefined)[],
): LaunchWork {
  const [x, y, z] = size;
  const workgroups = x * y * z;
  const data = new Map(
    kernel.bindings.map(({ name }, i) => [name, known[i]]),
  );
  const load = (binding: string, index: number) => data.get(binding)?.at(index);
  const n = kernel.bindings.length;
  const sums = new Array<number>(2 + 2 * n).fill(0);
  let exact = true;
  const looked = lookedAt(size);
  for (const group of looked) {
    const of = (lane: number): number[] => {
      const work = kernelWork(kernel, {
        group,
        lane,
        load,
      });
      exact &&= work.exact;
      return [
        work.multiplyAdds,
        work.operations,
        ...work.loads,
        ...work.stores,
      ];
    };
    const lanes = kernel.workgroupSize;
    const [first, last] = [of(0), of(lanes - 1)];
    const same = first.every((value, i) => value === last[i]);
    const seen = same ? [first] : spread(lanes, LANES).map(of);
    const scale = workgroups / looked.length * lanes / seen.length;
    for (const work of seen) {
      for (const [i, value] of work.entries()) sums[i]! += value * scale;
    }
  }
  const [multiplyAdds, operations] = sums as [number, number];
  return {
    workgroups,
    multiplyAdds,
    operations,
    loads: sums.slice(2, 2 + n),
    stores: sums.slice(2 + n),
    exact,
  };
}

/** Workgroups that stand for all. */
function lookedAt(
  size: readonly [number, number, number],
): [number, number, number][] {
  const [xs, ys, zs] = size.map((n) => spread(n, ALONG)) as [
    number[],
    number[],
    number[],
  ];
  return zs.flatMap((z) =>
    ys.flatMap((y) => xs.map((x): [number, number, number] => [x, y, z]))
  );
}

/** The golden ratio: its multiples fall nowhere twice. */
const GOLDEN = (Math.sqrt(5) - 1) / 2;

/** Up to `most` of n numbers, one from each of as many equal parts, but at no fixed distance: work may repeat, as by sequences. */
function spread(n: number, most: number): number[] {
  if (n <= most) return Array.from({ length: n }, (_, i) => i);
  return Array.from(
    { length: most },
    (_, i) => Math.floor((i + (i * GOLDEN) % 1) * n / most),
  );
}
