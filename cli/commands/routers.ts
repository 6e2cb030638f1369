/** `switchyard routers`: the routing of the same logits by each router preset. */

import {
  compareRouters,
  type CompareRoutersOptions,
  readLogits,
  type RouterComparison,
  type RouterRow,
} from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";
import { refuseFlags } from "../flags/values.ts";

/** Flags of `routers`. */
export interface RoutersFlags {
  readonly logits: string;
  readonly tensor?: string;
  readonly topK?: number;
  readonly capacityFactor?: number;
  readonly drop?: "position" | "score";
  readonly preset?: readonly string[];
  readonly json?: boolean;
}

/** Maximum number of experts whose loads are listed separately. */
const LISTED = 8;

/** Prints a table of presets. */
export async function routersCommand(
  io: CliIo,
  flags: RoutersFlags,
): Promise<number> {
  const { tensor, topK, capacityFactor, drop, preset } = flags;
  if (flags.logits.endsWith(".json")) {
    refuseFlags(
      { "--tensor": tensor },
      "with a JSON file: it has one list of rows. Leave it out",
    );
  }
  const logits = await readLogits(
    flags.logits,
    io.files,
    tensor === undefined ? {} : { tensor },
  );
  const options: CompareRoutersOptions = {
    ...topK === undefined ? {} : { topK },
    ...capacityFactor === undefined ? {} : { capacityFactor },
    ...drop === undefined ? {} : { drop },
    ...preset === undefined ? {} : { presets: preset },
  };
  const comparison = compareRouters(logits, options);
  await io.out(
    flags.json
      ? `${JSON.stringify(comparison, null, 2)}\n`
      : describe(comparison),
  );
  return 0;
}

/** The columns of the table: a heading and the value for a preset. */
const COLUMNS: readonly (readonly [string, (row: RouterRow) => string])[] = [
  ["preset", ({ preset }) => preset],
  ["top-k", ({ topK }) => String(topK)],
  ["capacity", ({ capacity }) => capacity === null ? "-" : String(capacity)],
  ["kept", ({ keptChoices }) => String(keptChoices)],
  ["dropped", ({ droppedChoices }) => String(droppedChoices)],
  ["tokens lost", ({ droppedTokens }) => String(droppedTokens)],
  [
    "weights of a token",
    ({ weightSum: [smallest, largest] }) =>
      smallest > largest
        ? "-"
        : `${smallest.toFixed(4)}..${largest.toFixed(4)}`,
  ],
  [
    "load",
    ({ load }) =>
      load.length <= LISTED
        ? load.join(" ")
        : `${Math.min(...load)}..${Math.max(...load)}`,
  ],
  [
    "balancing loss",
    ({ balancingLoss }) =>
      balancingLoss === null ? "-" : balancingLoss.toPrecision(7),
  ],
];

function describe(comparison: RouterComparison): string {
  const { tokens, experts, zLoss, rows, equalWeights, leftOut } = comparison;
  const cells = [
    COLUMNS.map(([heading]) => heading),
    ...rows.map((row) => COLUMNS.map(([, say]) => say(row))),
  ];
  const widths = COLUMNS.map((_, c) =>
    Math.max(...cells.map((line) => line[c]!.length))
  );
  const table = cells.map((line) =>
    line.map((cell, c) =>
      c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!)
    ).join("  ").trimEnd()
  );
  return [
    `${tokens} tokens, ${experts} experts, z-loss ${zLoss.toFixed(6)}`,
    "",
    ...table,
    "",
    ...equalWeights.map((group) => `equal weights: ${group.join(", ")}`),
    ...leftOut.map(({ preset, why }) => `left out: ${preset}, ${why}`),
    "",
  ].join("\n");
}
