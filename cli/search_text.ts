/** The result of a search, as text and as a document. */

import {
  type Found,
  meshName,
  type Objective,
  type Searched,
  type SearchPhase,
  type SearchTask,
} from "../engine/mod.ts";
import { sizeText } from "../spec/size_text.ts";
import { strategyFlags } from "../spec/strategies.ts";
import { rateText, timeText } from "../spec/time_text.ts";
import { type Machine, placeRanks } from "../spec/mod.ts";
import { type SearchResult, strategyText } from "../view/mod.ts";
import { formatTable } from "./table.ts";

/** The parameters of a search. */
export interface SearchTerms {
  readonly machine: Machine;
  readonly phase: SearchPhase;
  readonly objective: Objective;
  readonly context: number;
  readonly experts: string;
  /** Maximum seconds of a step. Default: none. */
  readonly goal?: number;
  /** Dtype of weights, and numerics. */
  readonly compile: SearchTask["compile"];
}

/** Maximum number of listed losers and of listed meshes that do not fit. */
const LISTED = 12;

/** Formats the best result, the Pareto front, and the reasons for rejecting the rest. */
export function formatSearch(searched: Searched, terms: SearchTerms): string {
  const { found, pareto, thrownOut } = searched;
  const [best] = found;
  const rest = found.slice(1, LISTED);
  return [
    `${terms.phase} on '${terms.machine.name}', sequences of ${terms.context} positions, experts chosen ${terms.experts}, objective ${terms.objective}${
      terms.goal === undefined
        ? ""
        : `, steps of at most ${timeText(terms.goal)}`
    }`,
    "",
    ...best
      ? [
        `best    ${configuration(best)}: ${best.why}`,
        ...best.seconds > (terms.goal ?? Infinity)
          ? ["        no configuration meets the goal"]
          : [],
        ...advice(best, terms),
        ratesLine(best, terms),
      ]
      : ["nothing fits"],
    ...crossoverLines(searched, terms),
    ...best ? ["", "Pareto front", ...table(pareto)] : [],
    ...rest.length > 0
      ? [
        "",
        "slower, at its best on each mesh",
        ...rest.map((one) => `  ${configuration(one)}: ${one.why}`),
      ]
      : [],
    ...thrownOut.length > 0
      ? [
        "",
        `thrown out (${thrownOut.length})`,
        ...thrownOut.slice(0, LISTED).map(({ mesh, why }) =>
          `  ${meshName(mesh)}: ${why}`
        ),
        ...thrownOut.length > LISTED ? ["  and more"] : [],
      ]
      : [],
    "",
  ].join("\n");
}

/** Formats the command that plans the best result. */
function advice(
  { mesh, replicas, strategy, step }: Found,
  { context, phase, compile }: SearchTerms,
): string[] {
  const { zero = 0, recompute = false } = strategy;
  const { pages, microBatches } = step.of;
  const { dtype = "bf16", kvCacheDtype } = compile;
  const flags = [
    ...phase === "train" ? ["--train"] : [],
    `--mesh ${meshName(mesh) === "1 device" ? "ep=1" : meshName(mesh)}`,
    `--max-tokens ${step.tokens / microBatches}`,
    `--max-sequences ${step.sequences / microBatches}`,
    `--max-context ${context}`,
    // At least those of a sequence.
    ...pages
      ? [
        `--pages ${
          Math.max(pages.count, Math.ceil(context / pages.size))
        }x${pages.size}`,
      ]
      : [],
    ...strategyFlags({ ...compile, ...strategy }),
    ...kvCacheDtype === undefined ? [] : [`--kv-cache-dtype ${kvCacheDtype}`],
    ...zero > 0 ? [`--zero ${zero}`] : [],
    ...recompute ? ["--recompute"] : [],
    ...microBatches > 1 ? [`--accumulate ${microBatches}`] : [],
    ...phase === "train" ? [`--dtype ${dtype}`] : [],
  ];
  return [
    `plan    ${flags.join(" ")}${replicas > 1 ? `, ${replicas} times` : ""}`,
  ];
}

/** Formats the assumptions of predicted times. Comparisons with published speeds may need others. */
function ratesLine(
  { step: { step, of } }: Found,
  { machine, phase, compile: { numerics = "exact" } }: SearchTerms,
): string {
  const device = machine.devices[placeRanks(machine)[0]!.kind]!;
  const { arithmetic } = step.parts;
  const share = step.multiplyAdds / device.multiplyAdds / arithmetic;
  const rest = arithmetic > 0 && share < 1 && numerics === "exact"
    ? ` At it, multiply-adds are ${
      Math.round(100 * share)
    } % of the arithmetic; the rest is other operations of kernels, such as attention's.`
    : "";
  const published = numerics === "exact" && phase !== "train"
    ? ` Published speeds are of 16-bit arithmetic: compare them with --numerics fast --wire bf16 --kv-cache-dtype bf16.`
    : "";
  return `rates   ${numerics} numerics: ${of.assumes}.${published}${rest}`;
}

function configuration(found: Found): string {
  const { mesh, replicas, tokensPerSecond, seconds } = found;
  const how = strategyText(found);
  return `${meshName(mesh, replicas)}${
    how === "" ? "" : `, ${how}`
  }, ${found.sequences} sequences, ${rateText(tokensPerSecond)}, ${
    timeText(seconds)
  } a step`;
}

function table(found: readonly Found[]): string[] {
  return formatTable([
    [
      "mesh",
      "strategy",
      "sequences",
      "tokens",
      "step",
      "speed",
      "a rank",
      "of",
    ],
    ...found.map((one) => [
      meshName(one.mesh, one.replicas),
      strategyText(one) || "-",
      ...[one.sequences, one.tokens].map(String),
      timeText(one.seconds),
      rateText(one.tokensPerSecond),
      sizeText(one.bytes),
      one.limit === undefined ? "?" : sizeText(one.limit),
    ]),
  ]);
}

function crossoverLines(
  { crossover, found: [best] }: Searched,
  { phase }: SearchTerms,
): string[] {
  if (!crossover || !best) return [];
  const { replicas, experts, first, crossings, from, to, speed, load } =
    crossover;
  const unit = phase === "decode" ? "sequences" : "tokens";
  const [size, other] = [replicas, experts].map(({ ep, tp }) => ep * tp);
  const names = {
    replicas: `${other! / size!} replicas of ${meshName(replicas)}`,
    experts: `one of ${meshName(experts)}`,
  };
  const winner = speed >= 1 ? "replicas" : "experts";
  const loser = speed >= 1 ? "experts" : "replicas";
  const exchanged = timeText(Math.abs(crossover.exchanged));
  const saved = timeText(Math.abs(crossover.saved));
  const why = winner === "replicas"
    ? `exchanges of experts apart cost ${exchanged} of a device for each token, and the reading of weights that they save is worth ${saved}`
    : `experts apart save ${saved} of reading weights for each token, and exchanges cost ${exchanged}`;
  const room = best.step.of.load;
  const apart = meshName(best.mesh) !== meshName(replicas);
  return [
    "",
    `at ${load} ${unit} a rank and without chunks, ${names[winner]} ${
      winner === "replicas" ? "beat" : "beats"
    } ${names[loser]}, ${
      Math.max(speed, 1 / speed).toFixed(2)
    } times as fast: ${why}`,
    ...winner === "replicas" && apart && room > load
      ? [
        `the best is ${
          meshName(best.mesh)
        } all the same: a rank has room for ${room} ${unit} there, for ${load} in a replica of ${
          meshName(replicas)
        }`,
      ]
      : [],
    crossings.length === 0
      ? `crossovers: none from ${from} to ${to} ${unit} a rank`
      : `crossovers: ${names[first]} at ${from} ${unit} a rank${
        crossings.map(({ at, to, because }) =>
          `, ${names[to]} from ${at} on (${because})`
        ).join("")
      }`,
  ];
}

/** Returns the JSON document of `search --json`, which has more than the page. */
export function searchDocument(
  { found, pareto, thrownOut, crossover, curve }: Searched,
  { machine, phase, objective, context, experts, goal, compile }: SearchTerms,
): SearchResult & { readonly [more: string]: unknown } {
  return {
    machine: machine.name,
    phase,
    objective,
    context,
    experts,
    ...goal === undefined ? {} : { goal },
    numerics: compile.numerics ?? "exact",
    ...found[0] ? { assumes: found[0].step.of.assumes } : {},
    found: found.map(documentOf),
    pareto: pareto.map(documentOf),
    thrownOut: thrownOut.map((one) => ({ name: meshName(one.mesh), ...one })),
    ...crossover ? { crossover } : {},
    curve: curve.map(({ devices, best, single }) => ({
      devices,
      ...best ? { best: documentOf(best) } : {},
      ...single ? { single: documentOf(single) } : {},
    })),
  };
}

function documentOf({ step, pareto: _, limit, ...found }: Found) {
  return {
    name: meshName(found.mesh, found.replicas),
    ...found,
    ...limit === undefined ? {} : { limit },
    parts: step.step.parts,
  };
}
