/** Prints statements of kernel trees as WGSL. */

import { endOf } from "../build.ts";
import type { LaneLoads } from "../lane_loads.ts";
import type { Expr, MatrixStmt, Stmt } from "../tree.ts";
import {
  type Naming,
  printElement,
  printExpression,
  printOperand,
} from "./expression.ts";
import { printMatrixStmt, type SubgroupTiles } from "./matrices.ts";
import { vectorName } from "./names.ts";

/** How a kernel is printed. */
export interface Printing extends Naming {
  /** Loads that the lanes of a subgroup share, by loop. */
  readonly lanes: ReadonlyMap<Stmt, readonly LaneLoads[]>;
  /** Distribution of its tiles over subgroups. Undefined: it uses no subgroup matrices. */
  readonly tile: SubgroupTiles | undefined;
}

type Of<Op extends Stmt["op"]> = Extract<MatrixStmt, { readonly op: Op }>;

/** The lines of statements. */
export function printStatements(
  statements: readonly MatrixStmt[],
  on: Printing,
): string[] {
  return statements.flatMap((s) => printStatement(s, on));
}

function printStatement(s: MatrixStmt, on: Printing): string[] {
  const { names, tile } = on;
  switch (s.op) {
    case "let":
    case "var":
      return [
        `${s.op} ${names.local(s.name)} = ${printExpression(s.value, on)};`,
      ];
    case "loads":
      return printLoads(s, on);
    case "set":
      return [`${names.local(s.name)} = ${printExpression(s.value, on)};`];
    case "store": {
      const index = printExpression(s.index, on);
      const value = printExpression(s.value, on);
      return [`${names.global(s.binding)}[${index}] = ${value};`];
    }
    case "sharedStore": {
      const value = tile?.operands.has(s.array)
        ? printHalf(s.value, on)
        : printExpression(s.value, on);
      return [`${printElement(s.array, s.index, on)} = ${value};`];
    }
    case "for":
      return printLoop(s, on);
    case "if":
      return [
        `if (${printExpression(s.condition, on)}) {`,
        ...inside(printStatements(s.then, on)),
        ...s.else ? ["} else {", ...inside(printStatements(s.else, on))] : [],
        "}",
      ];
    case "barrier":
      return ["workgroupBarrier();"];
    case "matrices":
    case "multiply":
    case "storeMatrix":
    case "scaleRows":
    case "results":
      return printMatrixStmt(s, tile!, {
        block: (statements, indent) =>
          printStatements(statements, on).map((text) => indent + text),
        array: names.global,
      });
  }
}

/** Lines inside braces. */
function inside(lines: readonly string[]): string[] {
  return lines.map((text) => `  ${text}`);
}

/** Loads a vector, and names its elements. */
function printLoads(s: Of<"loads">, on: Printing): string[] {
  const { names } = on;
  const vector = names.local(vectorName(s));
  const from = `${names.global(s.binding)}[${printExpression(s.index, on)}]`;
  return [
    `let ${vector} = ${from};`,
    ...s.names.map((name, i) =>
      `let ${names.local(name)} = ${vector}.${"xyzw"[i]};`
    ),
  ];
}

function printLoop(s: Of<"for">, on: Printing): string[] {
  const name = on.names.local(s.name);
  const head = `for (var ${name} = ${printExpression(s.from, on)}; ` +
    `${name} < ${printOperand(endOf(s), on)}; ` +
    `${name} += ${printExpression(s.step, on)}) {`;
  const loads = on.lanes.get(s as Stmt);
  if (!loads) return [head, ...inside(printStatements(s.body, on)), "}"];
  const body = s.body.flatMap((one) =>
    printFromLane(one as Stmt, loads, on) ?? printStatement(one, on)
  );
  // In a separate block, because other loops may have variables of the same names.
  return [
    "{",
    ...inside([
      ...loads.flatMap((load) => printLaneVariables(load, on)),
      head,
      ...inside(body),
      "}",
    ]),
    "}",
  ];
}

/** Variables of lane loads, before their loop. */
function printLaneVariables(
  { variables }: LaneLoads,
  { names }: Printing,
): string[] {
  return variables.map(({ name, of: [first, ...others] }) => {
    const chosen = others.reduce(
      (text, other, i) =>
        `select(${text}, ${names.local(other)}, subgroup_lane == ${i + 1}u)`,
      names.local(first!),
    );
    return `let ${names.local(name)} = ${chosen};`;
  });
}

/** The lane load of a statement. Undefined: it has none. */
function printFromLane(
  s: Stmt,
  loads: readonly LaneLoads[],
  on: Printing,
): string[] | undefined {
  const { names } = on;
  for (const { lets, name, value } of loads) {
    const lane = lets.findIndex((one) => one === s);
    if (lane < 0) continue;
    const broadcast = `subgroupBroadcast(${names.local(name)}, ${lane}u)`;
    return [
      ...lane === 0
        ? [`let ${names.local(name)} = ${printExpression(value, on)};`]
        : [],
      `let ${names.local(lets[lane]!.name)} = ${broadcast};`,
    ];
  }
  return undefined;
}

/** A value as f16, which rounds it. */
function printHalf(e: Expr, on: Printing): string {
  const value = e.op === "call" && e.fn === "roundF16" ? e.args[0]! : e;
  return `f16(${printExpression(value, on)})`;
}
