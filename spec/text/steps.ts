/** The text of programs: their ports, and one line per step; the parts of a dispatch or combine under one heading. */

import { oneLine } from "../shown.ts";
import { perRankText } from "../per_rank.ts";
import { blockOfAxis, isWithin } from "../axis_name.ts";
import { expertRanges } from "../plan/bytes.ts";
import { groupSizeOf, rankSetText } from "../mesh.ts";
import type { Plan, Port, Step } from "../plan/plan.ts";
import { formatSize, type Size } from "../size.ts";
import {
  dispatchedType,
  idsText,
  repeatLines,
  spanText,
  typeText,
} from "./parts.ts";
import type { Facts, StepFacts } from "../plan/facts.ts";
import type { RoutingFacts } from "../plan/routing_parts.ts";
import { permutationsOf } from "../plan/routing_parts.ts";

/** Facts for the lines of a routing. */
export interface RoutingText {
  readonly facts: RoutingFacts;
  /** The axis of its experts, if known. */
  readonly expert: string | undefined;
  /** Buffers of its permutation. */
  readonly permutation: string;
}

/** The local axis of a routing's experts. */
export function describeRouting(plan: Plan, facts: RoutingFacts): RoutingText {
  const exchange = facts.back[0]?.step ?? facts.forward[0]?.step;
  const { block = "" } = facts.count[0]?.step ?? exchange ?? {};
  const axes = Object.entries(plan.axes).flatMap((
    [name, { experts, over = [], of = name }],
  ) =>
    experts && over.join() === (exchange?.over ?? []).join() &&
      isWithin(block, blockOfAxis(of))
      ? [{ name, of }]
      : []
  );
  // The axis of the innermost block of the routing.
  const [expert] = axes.sort((a, b) => b.of.length - a.of.length);
  return {
    facts,
    expert: expert?.name,
    permutation: permutationsOf(facts)[0] ?? "?",
  };
}

/** The lines of every program. */
export function formatPrograms(facts: Facts): string[] {
  const { plan } = facts;
  return facts.programs.flatMap(({ program, steps }) => {
    const ports = (of: { readonly [name: string]: Port }, mark: string) =>
      Object.entries(of).map(([name, port]) =>
        `  ${mark} ${name} : ${typeText(plan, plan.buffers[port.buffer]!)}${
          port.buffer === name ? "" : ` in ${port.buffer}`
        }`
      );
    const routings = facts.routings
      .filter((routing) => routing.program === program.name)
      .map((routing) => describeRouting(plan, routing));
    const lines: string[] = [];
    let heading = "";
    const trains = steps.some(({ step }) => step.phase);
    let phase: string | undefined;
    for (const at of steps) {
      const { part, span, block } = at.step;
      const now = at.step.phase ?? "forward";
      if (trains && now !== phase) lines.push(`  ${phase = now}`);
      const said = [...block ? [block] : [], ...span ? [spanText(span)] : []];
      const comment = said.length > 0 ? `  // ${said.join(" ")}` : "";
      const next = part ? `${part.op} ${part.routing}` : "";
      const opens = part !== undefined &&
        (next !== heading || opensGroup(part.part, steps[at.index - 1])) &&
        !continues(steps, at);
      if (opens) {
        const routing = routings.find((r) => r.facts.number === part.routing)!;
        lines.push(`  ${headingOf(plan, steps, at, routing)}${comment}`);
      }
      if (opens || next !== heading) heading = opens ? next : "";
      const indent = heading ? "  " : "";
      lines.push(
        `  ${indent}${stepText(plan, at, heading !== "")}${comment}`,
      );
    }
    return [
      `program ${program.name} (${steps.length} steps)`,
      ...repeatLines(ports(program.inputs, "in ")),
      ...repeatLines(ports(program.outputs, "out")),
      ...repeatLines(lines),
    ];
  });
}

/** Whether a part starts a new dispatch or combine of the previous step's routing. */
function opensGroup(part: string, before: StepFacts | undefined): boolean {
  const previous = before?.step.part?.part;
  return (part === "permute" && previous !== "count") ||
    (part === "exchange" && previous === "combine");
}

/** Whether a step continues an earlier dispatch or combine: its later chunks, and the following steps on them. */
function continues(steps: readonly StepFacts[], at: StepFacts): boolean {
  const { step } = at;
  if (step.op === "wait") return true;
  if (step.op === "allToAll") {
    const { splits } = step;
    return expertRanges(step).some(([first], p) => first !== splits[p]);
  }
  return step.part?.part === "combine" &&
    steps.some((other) =>
      other.index < at.index && other.step.op === "wait" &&
      other.writes.some((name) => at.reads.includes(name))
    );
}

/** `%7 = dispatch x by sendRow over ep : f32[expert/ep:8 slot embed:512]` */
function headingOf(
  plan: Plan,
  steps: readonly StepFacts[],
  at: StepFacts,
  routing: RoutingText,
): string {
  const { op } = at.step.part!;
  const { facts, permutation } = routing;
  const over = facts.forward[0]?.step.over.join("+") ?? "";
  const rest = steps.slice(at.index);
  const first = (group: readonly StepFacts[]) =>
    group.find((step) => rest.includes(step));
  if (op === "dispatch" && facts.permute.length + facts.forward.length === 0) {
    return `%${at.index} = dispatch by ${permutation}, tokens read where they are`;
  }
  const [value, result] = op === "dispatch"
    ? dispatchedOf(plan, facts, first(facts.permute), first(facts.forward))
    : combinedOf(plan, facts, first(facts.back), first(facts.combine));
  const buffer = result === undefined ? undefined : plan.buffers[result];
  const type = !buffer
    ? "?"
    : op === "dispatch"
    ? dispatchedType(plan, buffer, routing.expert)
    : typeText(plan, buffer);
  return `%${at.index} = ${op} ${value ?? "?"} by ${permutation}${
    over && ` over ${over}`
  } : ${type}`;
}

type Ends = readonly [value: string | undefined, result: string | undefined];

function dispatchedOf(
  plan: Plan,
  facts: RoutingFacts,
  permute: StepFacts | undefined,
  exchange: StepFacts | undefined,
): Ends {
  const made = new Set(
    [facts, facts.within ?? facts].flatMap(({ count, regroup }) =>
      [...count, ...regroup].flatMap((step) => step.writes)
    ),
  );
  const value = permute?.reads.find((name) =>
    !made.has(name) && plan.buffers[name]!.kind !== "counts"
  );
  return [value, exchange?.writes[0] ?? permute?.writes[0]];
}

function combinedOf(
  plan: Plan,
  facts: RoutingFacts,
  exchange: StepFacts | undefined,
  combine: StepFacts | undefined,
): Ends {
  const made = new Set(facts.count.flatMap((step) => step.writes));
  const value = exchange?.reads[0] ??
    combine?.reads.find((name) =>
      !made.has(name) && plan.buffers[name]!.axes.length > 1
    );
  return [value, combine?.writes[0]];
}

function gridText(sizes: readonly [Size, Size, Size]): string {
  // Trailing ones are omitted.
  const last = sizes.findLastIndex((size) => size !== 1);
  return `<${
    sizes.slice(0, Math.max(last, 0) + 1).map(formatSize).join(" x ")
  }>`;
}

function stepText(plan: Plan, at: StepFacts, underHeading: boolean): string {
  const { step, index } = at;
  const head = `%${index}`;
  const whose = step.part && !underHeading
    ? ` ${step.part.op} ${step.part.routing}`
    : "";
  const what = step.part
    ? `${whose} ${step.part.part}:`
    : step.label
    ? ` ${oneLine(step.label)}:`
    : "";
  // A send names its stages.
  const ranks = step.op === "send" ? "" : rankSetText(step.ranks);
  return `${head}${what} ${bodyText(plan, step, at)}${ranks && ` ${ranks}`}`;
}

function bodyText(plan: Plan, step: Step, at: StepFacts): string {
  switch (step.op) {
    case "launch": {
      const results = [...new Set(at.writes)].join(", ");
      return `${results || "nothing"} = launch ${step.kernel}(${
        Object.entries(step.bindings).map(([binding, buffer]) =>
          binding === buffer ? buffer : `${binding}=${buffer}`
        ).join(", ")
      }) ${gridText(step.workgroups)}`;
    }
    case "copy":
      return `${step.to} = copy ${step.from} (${perRankText(step.bytes)} B)`;
    case "allGather":
      return `${step.to} = ${
        step.blocks ? "allToAll blocks" : "allGather"
      } ${step.from} over ${step.over.join("+")} (${
        step.rows ? `${step.rows.axis} x ` : ""
      }${step.bytes} B to each of ${
        groupSizeOf(plan.mesh, step.over) - 1
      } others)${step.rows ? ` by ${step.rows.counts}` : ""}`;
    case "send":
      return `${step.to} = send ${step.from} over ${step.over.join("+")} from ${
        step.stages.join(" to ")
      } (${step.rows ? `${step.rows.axis} x ` : ""}${step.bytes} B)${
        step.rows ? ` by ${step.rows.counts}` : ""
      }`;
    case "allToAll":
      return `${step.to} = ${
        step.handle === undefined ? "" : "start "
      }allToAll ${step.direction} ${step.from} over ${
        step.over.join("+")
      } by ${step.counts} split ${idsText(step.splits)}${
        step.countsPerRank === undefined ? "" : ` of ${step.countsPerRank}`
      }${step.inRounds ? " in rounds" : ""}${
        step.experts
          ? ` experts ${step.experts.map((pair) => pair.join("..")).join(" ")}`
          : ""
      } at ${step.groupRank} (${step.rowBytes} B a row, at most ${
        formatSize(step.pairRows)
      } to a rank) received counts ${step.receivedCounts}${
        step.handle === undefined ? "" : ` as '${oneLine(step.handle)}'`
      }`;
    case "rounds":
      return `${step.to} = rounds of ${step.counts} over ${
        step.over.join("+")
      } split ${
        idsText(step.splits)
      } (${step.rows} rows on a rank at a time, of up to ${step.maxRows})`;
    case "wait":
      return `${at.writes[0]} = wait for '${oneLine(step.handle)}'`;
    default:
      return step satisfies never;
  }
}
