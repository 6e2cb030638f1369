/** What kernels take that move rows between ranks of one device, from measured exchanges. */

import type { MachineDevice } from "../../spec/machine.ts";
import { sum } from "../../spec/sum.ts";
import { countExchange } from "../predict/local_exchange.ts";
import type { LinkMeter, LinkTimes } from "./measure_links.ts";

/** The rates at which exchanges of one row and of some take what they took. */
export function exchangeRates(
  { plan, exchange }: Pick<LinkMeter, "plan" | "exchange">,
  { all, rows }: Pick<LinkTimes, "all" | "rows">,
  { parallel = 1, grain = 0 }: MachineDevice,
): NonNullable<MachineDevice["exchange"]> {
  const works = (count: number) =>
    countExchange(plan, exchange, { tokens: count * plan.ranks ** 2 });
  // Short launches stay on one workgroup's share of the device where others join in late.
  const workers = (workgroups: number, short: boolean) =>
    short && grain > 0 ? 1 : Math.max(1, Math.min(parallel, workgroups));
  const operations = (count: number) =>
    sum(
      works(count).map(({ operations, workgroups }) =>
        operations * parallel / workers(workgroups, count === rows.one)
      ),
    );
  const [few, many] = [operations(rows.one), operations(rows.some)];
  // Where noise hides what rows take, a part of it at least.
  const seconds = Math.max(all.some / 4, all.some - all.one);
  const rate = Math.max(1, many - few) / seconds;
  const launch = (all.one - few / rate) / works(rows.one).length;
  return { launch: Math.max(0, launch), operations: rate };
}
