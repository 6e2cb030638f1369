/**
 * The simulator against published and recorded times. `results/predict.json` has the steps and exchanges at ep=1, 2 and
 * 4, and the machine measurements directly before them. `results/order.json` (devices of one process) and
 * `results/order_mpi.json` (processes) have the order of configurations of MoE models on four ranks. Nothing is
 * measured again except one of the orders: `--order NAME`, with `--measure mpi|separate` (Open MPI or MPICH, or devices
 * of one process), `--adapter cpu|native`, `--rounds N` (default 5) and `--out FILE`.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { launcherArguments } from "../cli/launch/mpi_launcher.ts";
import { LAUNCHERS } from "../test/helpers/mpi.ts";
import { machine } from "./measure.ts";
import {
  areApart,
  kendall,
  type Measured,
  type OrderDocument,
  orderNamed,
  orderOf,
  ORDERS,
} from "./predict/order.ts";
import { publishedTimes } from "./predict/exchanges.ts";
import { isWithin, replay, type Replayed, score } from "./predict/recorded.ts";
import { resultsPath, writeDocument } from "./results.ts";

const flags = parseArgs({
  options: {
    file: { type: "string", default: "predict.json" },
    measure: { type: "string" },
    order: { type: "string", default: "order_mpi" },
    adapter: { type: "string", default: "cpu" },
    rounds: { type: "string", default: "5" },
    out: { type: "string" },
  },
}).values;

/** Measures the order of configurations on four ranks. */
function measureOrder(sharing: string): OrderDocument {
  const program = [
    ...[
      process.execPath,
      fileURLToPath(new URL("../scripts/run.mjs", import.meta.url)),
    ],
    fileURLToPath(new URL("predict/rank.ts", import.meta.url)),
    ...[sharing, flags.adapter, flags.rounds, flags.order],
  ];
  const launcher = sharing === "mpi"
    ? LAUNCHERS.find(({ skip }) => !skip)
    : undefined;
  const [command, ...args] = launcher
    ? [
      launcher.command!,
      ...launcherArguments(launcher.family, {
        ranks: 4,
        root: process.getuid?.() === 0,
      }),
      ...program,
    ]
    : program;
  // Compiled once, instead of by four processes at the same time.
  spawnSync(program[0]!, [program[1]!, program[2]!, "none"]);
  const { stdout, stderr, status } = spawnSync(command!, args, {
    encoding: "utf8",
    timeout: 1_200_000,
  });
  if (status !== 0) throw new Error(`rank.ts failed: ${stderr}`);
  return {
    machine: machine(),
    where: `${flags.adapter} device, ${launcher?.name ?? "one process"}`,
    measured: JSON.parse(stdout) as Measured,
  };
}

/** Prints an order. */
async function showOrder(
  name: string,
  { where, measured }: OrderDocument,
): Promise<void> {
  const orders = await orderOf(orderNamed(name), measured);
  for (const [step, all] of Object.entries(orders)) {
    for (const { name, measured, predicted, rounds } of all) {
      const ms = (value: number) => value.toFixed(2);
      console.log(
        `${step}, ${name}: ${ms(measured)} ms measured (${
          ms(Math.min(...rounds))
        } to ${ms(Math.max(...rounds))}), ${ms(predicted)} predicted`,
      );
    }
    const [every, apart] = [kendall(all), kendall(all, areApart)];
    console.log(
      `${step} on 4 ranks, ${where}: Kendall's tau of ${all.length} configurations ${
        every.tau.toFixed(2)
      } (${every.pairs} pairs); of the ${apart.pairs} whose rounds do not overlap ${
        apart.tau.toFixed(2)
      }`,
    );
  }
}

/** Prints the recorded steps and exchanges. */
async function showRecorded(): Promise<void> {
  const replayed = await replay(flags.file);
  for (const { what, name, then, now } of replayed) {
    console.log(
      `${name}: ${what}, predicted over measured ${now.toFixed(2)}${
        isWithin(now) ? "" : ", off"
      } (the predictor of then: ${then.toFixed(2)})`,
    );
  }
  for (const what of ["step", "exchange"] satisfies Replayed["what"][]) {
    const { all, now, then } = score(replayed, what);
    console.log(
      `${what}s within 25 %: ${now} of ${all}; by the predictor of then ${then}`,
    );
  }
}

/** Prints the published times of dispatch and combine kernels. */
function showPublished(): void {
  for (const { name, seconds, ratio } of publishedTimes()) {
    console.log(
      `${name}: ${
        (1e6 * seconds).toFixed(0)
      } us published, predicted over published ${ratio.toFixed(2)}`,
    );
  }
}

if (flags.measure === undefined) {
  showPublished();
  await showRecorded();
  for (const name of Object.keys(ORDERS)) {
    if (!existsSync(resultsPath(name))) continue;
    await showOrder(
      name,
      JSON.parse(readFileSync(resultsPath(name), "utf8")) as OrderDocument,
    );
  }
} else {
  const order = measureOrder(flags.measure);
  await showOrder(flags.order, order);
  if (flags.out !== undefined) writeDocument(flags.out, order);
}
process.exit(0);
