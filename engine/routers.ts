/** Compares router presets on the same logits: kept tokens, weights, loss. */

import {
  ROUTING_PRESETS,
  type RoutingPreset,
  routingRule,
  type RuleChoices,
} from "../compiler/graph/routing/presets.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { marks, routeTokens } from "../compiler/graph/evaluate/routing.ts";
import { balancingLoss, model, route, trace, zLoss } from "../compiler/mod.ts";
import { readTensor } from "../runtime/mod.ts";
import { DataError } from "../spec/errors.ts";
import { JsonError, parseJson } from "../spec/parse_json.ts";
import { sum } from "../spec/sum.ts";
import type { FileSystem } from "./files.ts";
import { withTensors } from "./checkpoint/tensors.ts";

/** Logits of a router, row-major [token, expert]. */
export interface RouterLogits {
  readonly tokens: number;
  readonly experts: number;
  readonly data: Float32Array;
}

/** Options of the comparison. */
export interface CompareRoutersOptions {
  /** Experts per token, for presets without a fixed number. Default: 2, or 1 with one expert. */
  readonly topK?: number;
  /** Capacity of an expert as a multiple of an even share of the choices, for presets that can drop. */
  readonly capacityFactor?: number;
  /** Drop rule of presets that can drop. Default: that of each preset. */
  readonly drop?: "position" | "score";
  /** Names of the compared presets. Default: all. */
  readonly presets?: readonly string[];
}

/** Result of one preset. */
export interface RouterRow {
  readonly preset: RoutingPreset;
  readonly topK: number;
  /** Slots per expert; null: no limit. */
  readonly capacity: number | null;
  readonly keptChoices: number;
  readonly droppedChoices: number;
  /** Number of tokens without a kept choice. */
  readonly droppedTokens: number;
  /** Minimum and maximum sum of the weights of a token with kept choices. */
  readonly weightSum: readonly [min: number, max: number];
  /** Kept choices per expert. */
  readonly load: readonly number[];
  /** By the preset's formula; without one, the loss with value 1 in balance. */
  readonly balancingLoss: number;
}

/** Comparison of presets. */
export interface RouterComparison {
  readonly tokens: number;
  readonly experts: number;
  /** The mean square of the log-sum-exp, independent of the preset. */
  readonly zLoss: number;
  readonly rows: readonly RouterRow[];
  /** Groups of at least two presets with equal weights at the same experts for every token, up to rounding. */
  readonly equalWeights: readonly (readonly RoutingPreset[])[];
  /** Omitted presets that need more than logits, and the reason. */
  readonly leftOut: readonly {
    readonly preset: RoutingPreset;
    readonly why: string;
  }[];
}

/** Weights that differ by less count as equal: presets divide in different orders. */
const EQUAL = 1e-6;

/** Presets whose choices do not depend on logits. */
const LEFT_OUT: { readonly [preset in RoutingPreset]?: string } = {
  hash: "its choices are given",
};

/**
 * Routes the same logits with each preset.
 *
 * Throws DataError for an unknown preset, or if `topK` is not a valid number of experts.
 */
export function compareRouters(
  logits: RouterLogits,
  options: CompareRoutersOptions = {},
): RouterComparison {
  const { tokens, experts } = logits;
  const { topK = Math.min(2, experts) } = options;
  if (topK > experts) {
    throw new DataError(
      `Cannot route to ${topK} experts: the logits are of ${experts}. Lower --top-k`,
    );
  }
  const names = presetsOf(options.presets);
  const routed = names.filter((name) => LEFT_OUT[name] === undefined)
    .map((name) => routeBy(name, logits, { ...options, topK }));
  return {
    tokens,
    experts,
    zLoss: zLossOf(logits),
    rows: routed.map(({ row }) => row),
    equalWeights: equalWeights(routed),
    leftOut: names.flatMap((preset) => {
      const why = LEFT_OUT[preset];
      return why === undefined ? [] : [{ preset, why }];
    }),
  };
}

function presetsOf(given: readonly string[] | undefined): RoutingPreset[] {
  const known = Object.keys(ROUTING_PRESETS) as RoutingPreset[];
  if (given === undefined || given.length === 0) return known;
  return given.map((name) => {
    const preset = known.find((one) => one === name);
    if (preset !== undefined) return preset;
    throw new DataError(
      `Cannot route by preset '${name}': there is none. Presets are ${
        known.map((one) => `'${one}'`).join(", ")
      }`,
    );
  });
}

/** A preset's row, and its weights, [token, expert]. */
interface RoutedBy {
  readonly row: RouterRow;
  readonly weights: Float64Array;
}

function routeBy(
  preset: RoutingPreset,
  logits: RouterLogits,
  options: CompareRoutersOptions & { readonly topK: number },
): RoutedBy {
  const { tokens, experts, data } = logits;
  const choices = choicesOf(preset, experts, options);
  const rule = routingRule({ preset, ...choices });
  const routed = routeTokens(rule, {
    axes: ["token", "expert"],
    shape: [tokens, experts],
    dtype: "f32",
    data,
  });
  const k = rule.topK;
  const weights = new Float64Array(tokens * experts);
  routed.index.forEach((expert, i) => {
    weights[Math.floor(i / k) * experts + expert]! += routed.weight[i]!;
  });
  const keptMask = marks(routed, "kept");
  const load = new Array<number>(experts).fill(0);
  const ofToken = new Array<number>(tokens).fill(0);
  keptMask.forEach((n, i) => {
    load[i % experts]! += n;
    ofToken[Math.floor(i / experts)]! += n;
  });
  const sums = ofToken.flatMap((n, t) =>
    n === 0 ? [] : [sum(weights.subarray(t * experts, (t + 1) * experts))]
  );
  const keptChoices = load.reduce((a, b) => a + b, 0);
  return {
    weights,
    row: {
      preset,
      topK: k,
      capacity: routed.capacity[0] ?? null,
      keptChoices,
      droppedChoices: tokens * k - keptChoices,
      droppedTokens: ofToken.filter((n) => n === 0).length,
      weightSum: [
        sums.reduce((a, b) => Math.min(a, b), Infinity),
        sums.reduce((a, b) => Math.max(a, b), 0),
      ],
      load,
      balancingLoss: lossOf(logits, preset, choices),
    },
  };
}

/** The balancing loss of a routing, as the language defines it. */
function lossOf(
  { tokens, experts, data }: RouterLogits,
  preset: RoutingPreset,
  choices: RuleChoices,
): number {
  const router = model({ token: tokens, expert: experts }, (m) => {
    const logits = m.input("logits", "token expert");
    const routing = route(logits, { over: "expert", preset, ...choices });
    return { loss: balancingLoss(logits, routing, { over: "expert" }) };
  });
  const { outputs } = evaluate(trace(router), { inputs: { logits: data } });
  return outputs["loss"]!.data[0]!;
}

function zLossOf({ tokens, experts, data }: RouterLogits): number {
  const router = model({ token: tokens, expert: experts }, (m) => ({
    loss: zLoss(m.input("logits", "token expert"), { over: "expert" }),
  }));
  const { outputs } = evaluate(trace(router), { inputs: { logits: data } });
  return outputs["loss"]!.data[0]!;
}

/** Options that override a preset. */
function choicesOf(
  preset: RoutingPreset,
  experts: number,
  { topK, capacityFactor: factor, drop }: CompareRoutersOptions & {
    readonly topK: number;
  },
): RuleChoices {
  const known = ROUTING_PRESETS[preset] as {
    readonly chooses?: number;
    readonly capacity?: {
      readonly slots: string | number;
      readonly per?: string;
      readonly drop: string;
    };
  };
  // With expert choice, every token is a candidate for all experts.
  const all = preset === "expertChoice";
  const k = all ? experts : known.chooses ?? topK;
  if (known.capacity === undefined) return { topK: k };
  if (all) return { topK: k, capacity: { factor: topK * (factor ?? 1) } };
  const { per, slots, drop: usual } = known.capacity;
  const set = {
    // Shares of tokens are shares of choices times their number; a fixed number becomes a share.
    ...factor === undefined ? {} : {
      factor: per === "token" ? factor * k : factor,
      ...typeof slots === "number" ? { slots: "floor" as const } : {},
    },
    // Random numbers are not available.
    ...drop !== undefined
      ? { drop }
      : usual === "random"
      ? { drop: "position" as const }
      : {},
  };
  return Object.keys(set).length === 0
    ? { topK: k }
    : { topK: k, capacity: set };
}

function equalWeights(routed: readonly RoutedBy[]): RoutingPreset[][] {
  const groups: RoutedBy[][] = [];
  for (const one of routed) {
    const equal = groups.find(([first]) =>
      first!.weights.every((w, i) => Math.abs(w - one.weights[i]!) <= EQUAL)
    );
    if (equal) equal.push(one);
    else groups.push([one]);
  }
  return groups.filter((group) => group.length > 1)
    .map((group) => group.map(({ row }) => row.preset));
}

/**
 * Reads the logits of a file: JSON, a list of rows; or a tensor of a safetensors file, whose last axis is the experts.
 */
export async function readLogits(
  path: string,
  files: FileSystem,
  { tensor = "logits" }: { readonly tensor?: string } = {},
): Promise<RouterLogits> {
  const rows = path.endsWith(".json")
    ? rowsOfJson(path, await files.readText(path))
    : await rowsOfTensor(path, files, tensor);
  const wrong = rows.data.findIndex((x) => !Number.isFinite(x));
  if (wrong < 0) return rows;
  throw new DataError(
    `Cannot use the logits of '${path}': the one of token ${
      Math.floor(wrong / rows.experts)
    } and expert ${wrong % rows.experts} is ${
      rows.data[wrong]
    }. Give finite numbers`,
  );
}

async function rowsOfTensor(
  path: string,
  files: FileSystem,
  name: string,
): Promise<RouterLogits> {
  const { shape, dtype, data } = await withTensors(
    [path],
    files,
    (tensors) => {
      const found = tensors.get(name);
      if (found) return readTensor(found);
      throw new DataError(
        `Cannot read logits of '${path}': it has no tensor '${name}'. Name one of its tensors with --tensor (${
          [...tensors.keys()].map((one) => `'${one}'`).join(", ")
        })`,
      );
    },
  );
  const experts = shape.at(-1) ?? 0;
  if (shape.length < 2 || experts === 0 || !(data instanceof Float32Array)) {
    throw new DataError(
      `Cannot read logits of '${path}': tensor '${name}' is ${dtype.toUpperCase()} [${
        shape.join(", ")
      }]. Give floating-point numbers [tokens, experts]`,
    );
  }
  return { tokens: data.length / experts, experts, data };
}

function rowsOfJson(path: string, text: string): RouterLogits {
  let rows: unknown;
  try {
    rows = parseJson(text);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    throw new DataError(
      `Cannot read '${path}': it ${error.state}. Copy it again`,
    );
  }
  const isRow = (row: unknown): row is number[] =>
    Array.isArray(row) && row.length > 0 &&
    row.every((x) => typeof x === "number");
  const list: readonly unknown[] = Array.isArray(rows) ? rows : [];
  const [first] = list;
  if (
    !isRow(first) ||
    !list.every((row) => isRow(row) && row.length === first.length)
  ) {
    throw new DataError(
      `Cannot read logits of '${path}': it is no list of rows of equally many numbers. Give [[…], […]], a row of experts for each token`,
    );
  }
  return {
    tokens: list.length,
    experts: first.length,
    data: Float32Array.from((list as number[][]).flat()),
  };
}
