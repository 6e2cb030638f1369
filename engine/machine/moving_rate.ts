/** How fast kernels move rows between ranks of one device, from measured exchanges. */

import type { MachineDevice } from "../../spec/machine.ts";
import { sum } from "../../spec/sum.ts";
import type { LaunchWork } from "../predict/launch.ts";
import { countExchange } from "../predict/local_exchange.ts";
import type { LinkMeter, LinkTimes } from "./measure_links.ts";

/** The launches of exchanges of one row and of some. */
export interface ExchangeWorks {
  readonly one: readonly LaunchWork[];
  readonly some: readonly LaunchWork[];
}

/** Count what a link meter carries out between ranks of one device. */
export function exchangeWorks(
  { plan, exchange, rows }: Pick<LinkMeter, "plan" | "exchange" | "rows">,
): ExchangeWorks {
  const works = (count: number) =>
    countExchange(plan, exchange, { tokens: count * plan.ranks ** 2 });
  return { one: works(rows.one), some: works(rows.some) };
}

/** The rate at which exchanges of one row and of some take what they took. */
export function movingRate(
  { one, some }: ExchangeWorks,
  all: Pick<LinkTimes["all"], "one" | "some">,
  { launch, parallel = 1, grain = 0 }: Pick<
    MachineDevice,
    "launch" | "parallel" | "grain"
  >,
): number {
  // Operations as if all of the device did them; short launches stay on a part of it where others join in late.
  const rate = (works: readonly LaunchWork[], seconds: number, alone = false) =>
    sum(works.map(({ operations, workgroups }) => {
      const workers = alone ? 1 : Math.max(1, Math.min(parallel, workgroups));
      return operations * parallel / workers;
    })) / Math.max(seconds / 8, seconds - works.length * launch);
  // Short ones and long ones differ a little: what lies between their rates is about as far from both.
  return Math.sqrt(rate(one, all.one, grain > 0) * rate(some, all.some));
}
