/** Rates of kernels that move rows between ranks of one device, from measured exchanges. */

import type { MachineDevice } from "../../../spec/machine.ts";
import { sum } from "../../../spec/sum.ts";
import type { LaunchWork } from "../simulate/launch_work.ts";
import { launchContext, openLaunchMeter } from "../simulate/launches.ts";
import type { LinkMeter, LinkTimes } from "./measure_links.ts";

/** The launches of exchanges of one row and of some rows. */
export interface ExchangeWorks {
  readonly one: readonly LaunchWork[];
  readonly some: readonly LaunchWork[];
}

/** Counts the launches of a link meter between ranks of one device. */
export function exchangeWorks(
  { plan, exchange, rows }: Pick<LinkMeter, "plan" | "exchange" | "rows">,
): ExchangeWorks {
  const works = (count: number) => {
    const workload = { tokens: count * plan.ranks ** 2 };
    return openLaunchMeter(launchContext(plan, workload)).local(exchange);
  };
  return { one: works(rows.one), some: works(rows.some) };
}

/** The rates that reproduce the measured times of exchanges of one row and of some rows. */
export function exchangeRates(
  { one, some }: ExchangeWorks,
  all: Pick<LinkTimes["all"], "one" | "some">,
  device: Pick<MachineDevice, "launch" | "parallel" | "grain">,
): NonNullable<MachineDevice["exchange"]> {
  const { parallel = 1, grain = 0 } = device;
  // Operations relative to the entire device; short launches use a part of it, which other workers join late.
  const operations = (works: readonly LaunchWork[], alone: boolean) =>
    sum(works.map(({ operations, workgroups }) => {
      const workers = alone ? 1 : Math.max(1, Math.min(parallel, workgroups));
      return operations * parallel / workers;
    }));
  const few = operations(one, grain > 0);
  const many = operations(some, false);
  // If noise hides the time of rows, a fraction of the measured time.
  const rows = Math.max(all.some / 4, all.some - all.one);
  // No launch takes less than that of a nearly empty kernel.
  const launch = Math.max(
    device.launch,
    (all.one - few * rows / Math.max(1, many - few)) / one.length,
  );
  const rate = (operations: number, seconds: number) =>
    operations / Math.max(seconds / 8, seconds - one.length * launch);
  // Short and long exchanges may differ: a rate between theirs is about equally far from both.
  return {
    launch,
    operations: Math.sqrt(rate(few, all.one) * rate(many, all.some)),
  };
}
