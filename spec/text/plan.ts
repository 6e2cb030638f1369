/** The text form of a plan in one canonical order, for reading and for diffs. Only for legal plans. */

import { oneLine } from "../shown.ts";
import { perRankText } from "../per_rank.ts";
import { digits } from "../per_rank.ts";
import { printWgsl } from "../kernel/wgsl/wgsl.ts";
import { kernelCost } from "../kernel/cost.ts";
import { coordinates, groupRankOf, groupSizeOf, stageAxis } from "../mesh.ts";
import { idealBubble } from "../schedule.ts";
import {
  type TabledAxis,
  tableIds,
  tableLength,
  tableStart,
} from "../table.ts";
import { bytesOfKinds, movesTokens, purposeOf } from "../plan/bytes.ts";
import {
  type AllGatherStep,
  type KeysAxis,
  onRank,
  type Plan,
  type PlanAxis,
} from "../plan/plan.ts";
import {
  alignRows,
  idsText,
  mergeRows,
  overText,
  repeatRows,
  typeText,
} from "./parts.ts";
import { describeRouting, formatPrograms } from "./steps.ts";
import { rankClasses } from "../plan/rank_classes.ts";
import { livesOf } from "../plan/lives.ts";
import { collectFacts, collectives, type Facts } from "../plan/facts.ts";

/** Options of `formatPlan`. */
export interface FormatPlanOptions {
  /** Whether to print the WGSL of the kernels. Default: false. */
  readonly kernels?: boolean;
}

/** The text of a plan. */
export function formatPlan(
  plan: Plan,
  options: FormatPlanOptions = {},
): string {
  const facts = collectFacts(plan);
  const sections = [
    formatHeader(plan),
    formatAxes(plan),
    formatRanks(facts),
    formatTraffic(facts),
    formatBuffers(facts),
    formatWeights(plan),
    formatKernels(plan),
    formatPrograms(facts),
    ...(options.kernels ? [formatWgsl(plan)] : []),
  ];
  return sections.filter((lines) => lines.length > 0)
    .map((lines) => lines.join("\n") + "\n").join("\n");
}

/** `dp=2 ep=4` */
export function meshText(plan: Plan): string {
  return plan.mesh.map(({ name, size }) => `${name}=${size}`).join(" ") ||
    "none";
}

function pairs(record: { readonly [name: string]: number | string }): string {
  return Object.entries(record).map(([name, value]) => `${name}=${value}`)
    .join(" ");
}

/** `exact segments=8 minSegment=4 block=32 wire=fp8` */
function numericsText({ numerics }: Plan): string {
  const { class: name, ...parameters } = numerics;
  return `${name} ${pairs(parameters)}`;
}

function formatHeader(plan: Plan): string[] {
  const pipeline = pipelineText(plan);
  return [
    `plan version ${plan.version}, numerics ${numericsText(plan)}`,
    `  mesh      ${meshText(plan)} (${plan.ranks} ranks)`,
    ...pipeline === undefined ? [] : [`  pipeline  ${pipeline}`],
    `  counts    ${plan.counts.join(" ") || "none"}`,
    `  limits    ${pairs(plan.requiredLimits) || "none"}`,
    `  features  ${plan.requiredFeatures.join(" ") || "none"}`,
  ];
}

/**
 * The schedule of a training step: `1f1b, 4 stages, 8 micro-batches: a bubble of 41.2 % of the work (37.5 % for equal
 * stages)`. Undefined without stages.
 */
export function pipelineText({ mesh, pipeline }: Plan): string | undefined {
  const stages = stageAxis(mesh)?.size;
  if (!pipeline || stages === undefined) return undefined;
  const { schedule, microBatches, bubble } = pipeline;
  const percent = (share: number) => `${Number((100 * share).toFixed(1))} %`;
  const equal = idealBubble(schedule, { stages, microBatches });
  return `${schedule}, ${stages} stages, ${microBatches} micro-batches: a bubble of ${
    percent(bubble)
  } of the work (${percent(equal)} for equal stages)`;
}

function assignmentText(
  assignment: NonNullable<PlanAxis["assignment"]>,
): string {
  if (assignment.by === "blocks") {
    return assignment.within === undefined
      ? assignment.by
      : `${assignment.by} of ${assignment.within}`;
  }
  if (assignment.by === "group") return `group of ${assignment.of}`;
  if (assignment.by === "keys") return keysText(assignment);
  const input = `${assignment.by} ${assignment.input}`;
  if (assignment.by !== "items") return input;
  const { of, each } = assignment;
  return `${input} of ${of}${each === undefined ? "" : `, ${each} each`}`;
}

/** The part of attention that ranks share, with the bytes that choose between keys and sums. */
function keysText(
  { part, of, window, chunk, blockBytes, tokenBytes }: KeysAxis,
): string {
  const what = {
    past: `blocks of earlier keys`,
    gathered: `${of} with gathered keys`,
    relayed: `${of} with sent sums`,
  }[part];
  const seen = [["window", window], ["chunk", chunk]].flatMap(([name, n]) =>
    n === undefined ? [] : [` in ${name} ${n}`]
  ).join("");
  return `${what}${seen} (gathered if blocks * ${blockBytes} < tokens * ${tokenBytes})`;
}

/** The ids of each rank of a group; for many ranks with blocks or cyclic tables, only the kind. */
function tableText(axis: TabledAxis, groupSize: number): string {
  const { size, table } = axis;
  if (groupSize > FEW_RANKS && typeof table === "string") {
    const each = Math.ceil(size / groupSize);
    return table === "block"
      ? `0..${size - 1} in ${groupSize} blocks of ${each}`
      : `0..${size - 1} cyclic over ${groupSize}`;
  }
  return Array.from(
    { length: groupSize },
    (_, at) => `[${partText(axis, groupSize, at)}]`,
  ).join(" ");
}

/** The ids of one rank. Named tables are not expanded: an axis of a plan may be very long. */
function partText(axis: TabledAxis, groupSize: number, at: number): string {
  const { table } = axis;
  const length = tableLength(axis, groupSize, at);
  if (typeof table === "object" || length <= 8) {
    return idsText(tableIds(axis, groupSize, at));
  }
  const first = tableStart(axis, groupSize, at);
  return table === "block"
    ? `${first}..${first + length - 1}`
    : `${first} ${first + groupSize} … ${first + (length - 1) * groupSize}`;
}

function formatAxes(plan: Plan): string[] {
  const where = ({ over, table, assignment, size }: PlanAxis): string => {
    const placed = overText(over);
    if (!placed && !table && !assignment) return "";
    const assigned = assignment
      ? ` assigned by ${assignmentText(assignment)}`
      : "";
    const ids = table &&
      tableText({ size, table }, groupSizeOf(plan.mesh, over ?? []));
    return `${placed && `over ${placed}`}${assigned}${
      ids === undefined ? "" : ` table ${ids}`
    }`.trim();
  };
  return [
    "axes",
    ...alignRows(
      mergeRows(
        Object.entries(plan.axes).map(([name, axis]) => [
          name,
          `${axis.dynamic && !axis.exact ? "<= " : ""}${axis.size}`,
          where(axis),
        ]),
      ),
    ),
  ];
}

/** Axes placed by a table, with the ids of a rank, or for equal ranks their number. */
function heldBy(plan: Plan, ranks: readonly number[]): string {
  return Object.entries(plan.axes).flatMap(([name, { table, over, size }]) => {
    if (!table || !over) return [];
    const [groupSize, at] = [
      groupSizeOf(plan.mesh, over),
      groupRankOf(plan.mesh, ranks[0]!, over),
    ];
    const held = ranks.length === 1
      ? partText({ size, table }, groupSize, at) || "none"
      : `x ${tableLength({ size, table }, groupSize, at)}`;
    return [`${name} ${held}`];
  }).join("; ");
}

/** Maximum number of ranks that are listed individually; otherwise equal ones are listed together. */
const FEW_RANKS = 16;

/** Ranks by their shared row. */
function rankRows({ plan }: Facts): number[][] {
  if (plan.ranks <= FEW_RANKS) {
    return Array.from({ length: plan.ranks }, (_, rank) => [rank]);
  }
  const rows = new Map<number, number[]>();
  for (const [rank, of] of rankClasses(plan).entries()) {
    const row = rows.get(of);
    if (row) row.push(rank);
    else rows.set(of, [rank]);
  }
  return [...rows.values()];
}

function formatRanks(facts: Facts): string[] {
  const { plan } = facts;
  const header = [
    "rank",
    "at",
    "peak bytes",
    "weights",
    "states",
    "inputs and outputs",
    "tables",
    "scratch",
    "staging local",
    "staging host",
    "holds",
  ];
  const columns = [["weight"], ["state"], ["input", "output"], [
    "const",
    "rope",
    "counts",
    "assignment",
  ]].map((kinds) => bytesOfKinds(plan, kinds));
  const rows = rankRows(facts).map((ranks) => {
    const rank = ranks[0]!;
    const peak = onRank(plan.peakBytes, rank);
    const lasting = columns.map((bytes) => onRank(bytes, rank));
    // Scratch buffers share allocations: non-persistent memory is theirs.
    const scratch = lasting.reduce((rest, bytes) => rest - bytes, peak);
    return [
      idsText(ranks),
      ranks.length === 1 ? coordinates(plan.mesh, rank).join(",") : "",
      ...[peak, ...lasting, scratch].map(digits),
      digits(onRank(plan.staging.local, rank)),
      digits(onRank(plan.staging.host, rank)),
      heldBy(plan, ranks),
    ];
  });
  return ["memory per rank", ...alignRows([header, ...rows])];
}

/** The collective of unreduced or sharded values. */
function sumText({ blocks, from }: AllGatherStep, { buffers }: Plan): string {
  if (blocks) return "reduce-scatter";
  return buffers[from]!.unreduced ? "all-reduce" : "all-gather of shards";
}

/** Bytes that each collective sends to other ranks: a number, or a formula of dynamic rows. */
function formatTraffic(facts: Facts): string[] {
  const { plan } = facts;
  const rows = facts.routings.flatMap((routing) => {
    const { expert } = describeRouting(plan, routing);
    const { number, program, gather, forward, back } = routing;
    const { indices, lists } = routing;
    const all = [...gather, ...indices, ...lists, ...forward, ...back];
    const lines = all.map(({ step, name }) => {
      const title = step.op === "allGather" ? "counts" : step.part!.op;
      if (step.op === "allGather") {
        const others = groupSizeOf(plan.mesh, step.over) - 1;
        return [
          name,
          title,
          `over ${step.over.join("+")}`,
          `${step.bytes * others} B = ${step.bytes} B x ${others} others`,
        ];
      }
      if (step.op !== "allToAll") return [name, title];
      const ways = title === "dispatch" ? "rank -> others" : "others -> rank";
      const what = movesTokens(step) ? "tokens" : "rows";
      return [
        name,
        title,
        `over ${step.over.join("+")}`,
        `${what}(${ways}) x ${step.rowBytes} B, at most ${
          perRankText(plan.buffers[step.from]!.bytes)
        } B`,
      ];
    });
    const head = `routing ${number} of ${program}`;
    return lines.length > 0 ? lines.map((line) => [head, ...line]) : [[
      head,
      "",
      "",
      "",
      `all of '${expert ?? "expert"}' on each rank: 0 B`,
    ]];
  });
  for (const { step, at } of collectives(facts)) {
    if (step.op === "send") {
      const [source, destination] = step.stages;
      rows.push([
        "send",
        at.name,
        purposeOf(step, plan),
        `from ${step.over[0]} ${source} to ${destination}`,
        `${step.rows ? `rows(${step.rows.axis}) x ` : ""}${step.bytes} B`,
      ]);
      continue;
    }
    if (step.op !== "allGather" || step.part) continue;
    const others = groupSizeOf(plan.mesh, step.over) - 1;
    const where = `over ${step.over.join("+")}`;
    if (step.rows) {
      rows.push([
        step.blocks
          ? `reduce-scatter of ${step.rows.axis}`
          : `all-gather of ${step.rows.axis}`,
        at.name,
        step.blocks ? "reduce" : purposeOf(step, plan),
        where,
        step.blocks
          ? `rows(${step.rows.axis} of others) x ${step.bytes} B`
          : `rows(${step.rows.axis}) x ${step.bytes} B x ${others} others`,
      ]);
      continue;
    }
    rows.push([
      sumText(step, plan),
      at.name,
      "reduce",
      where,
      `${step.bytes * others} B = ${step.bytes} B x ${others} others`,
    ]);
  }
  return rows.length > 0
    ? ["bytes that leave each rank", ...repeatRows(rows)]
    : [];
}

function formatBuffers(facts: Facts): string[] {
  const { plan } = facts;
  const lives = facts.programs.map((program) => ({
    name: program.program.name,
    lives: livesOf(facts, program),
    end: program.steps.length,
  }));
  const rows = [...facts.buffers].map(([name, buffer]) => {
    const life = buffer.kind !== "scratch" ? "always" : lives.flatMap((p) => {
      const found = p.lives.get(name);
      return found
        ? [`${p.name} ${found.first}..${Math.min(found.last, p.end)}`]
        : [];
    }).join(", ") || "never";
    const { writers, written = {} } = buffer;
    const writes = [
      ...writers === undefined ? [] : [`${writers} writers`],
      ...Object.entries(written).map(([program, order]) =>
        `${program} writes it ${order}`
      ),
    ];
    return [
      name,
      buffer.kind,
      typeText(plan, buffer),
      `${perRankText(buffer.bytes)} B`,
      `allocation ${buffer.allocation} at ${buffer.offset}`,
      [life, ...writes].join(", "),
    ];
  });
  return [
    `buffers (${rows.length} in ${plan.allocations.length} allocations)`,
    ...repeatRows(rows),
  ];
}

function formatWeights(plan: Plan): string[] {
  if (plan.weights.length === 0) return [];
  const rows = plan.weights.map((weight) => {
    const shape = weight.axes.map((axis, i) => `${axis}:${weight.shape[i]}`);
    const { stack } = weight;
    const sliced = weight.axes.filter((axis) => plan.axes[axis]?.over);
    return [
      weight.source,
      `${weight.stored}[${shape.join(" ")}]`,
      weight.buffer === weight.source ? "" : `into ${weight.buffer}`,
      [
        ...stack === undefined ? [] : [`one tensor per ${stack}`],
        ...sliced.length > 0 ? [`slices of ${sliced.join(" ")}`] : [],
        ...weight.activations ? [`${weight.activations} activations`] : [],
      ].join(", ") || "replicated",
    ];
  });
  return [`weights (${rows.length})`, ...repeatRows(rows)];
}

function formatKernels(plan: Plan): string[] {
  const rows = Object.entries(plan.kernels).map(([name, { tree }]) => {
    const cost = kernelCost(tree);
    const shared = tree.shared.reduce((n, array) => n + 4 * array.length, 0);
    return [
      name,
      `workgroup ${tree.workgroupSize}`,
      `${shared} B shared`,
      `${
        cost.exact ? "" : ">= "
      }${cost.multiplyAdds} multiply-adds an invocation`,
      tree.bindings.map(({ name: binding, type, access, writable }) =>
        `${binding}: ${access}${writable ? " (writable)" : ""} ${type}`
      ).join(", "),
    ];
  });
  return [`kernels (${rows.length})`, ...alignRows(rows)];
}

function formatWgsl(plan: Plan): string[] {
  return Object.entries(plan.kernels).flatMap(([name, { tree }]) => [
    `kernel ${name}`,
    ...printWgsl(tree).trimEnd().split("\n").map((line) =>
      `  ${oneLine(line)}`.trimEnd()
    ),
  ]);
}
