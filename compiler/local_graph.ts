/** The passes from the graph of all ranks to the graph of one rank. */

import { cachedWith } from "../spec/bounded_cache.ts";
import { ModelError, PlacementError } from "../spec/errors.ts";
import { meshAxes } from "../spec/mesh.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { SCHEDULE_NAMES } from "../spec/schedule.ts";
import { type Dispatcher, dispatcherWords } from "../spec/strategies.ts";
import type { CompileOptions } from "./compile_graph.ts";
import { recordSquares } from "./graph/gradients/record_squares.ts";
import type { Graph } from "./graph/graph.ts";
import { roundExchanges } from "./graph/round_exchanges.ts";
import { countDropped } from "./graph/routing/count_dropped.ts";
import { accumulatedName } from "./graph/train_step.ts";
import { simplify } from "./passes/mod.ts";
import {
  axisFacts,
  checkSizes,
  checkStates,
  localize,
  type Localized,
  readPlacement,
  recomputeViews,
  scheduleStages,
  shard,
  stagesOf,
} from "./sharding/mod.ts";

/** The graph of a rank, and the stages of the schedule. */
export interface LocalGraph extends Localized {
  readonly pipeline: Plan["pipeline"];
}

/** Options that the graph of a rank depends on. */
const OPTIONS = [
  "mesh",
  "place",
  "sliceExperts",
  "dispatcher",
  "numerics",
  "wire",
  "zero",
  "recordSquares",
  "countDropped",
  "stages",
  "pipeline",
] as const satisfies readonly (keyof CompileOptions)[];

/** `CompileOptions` with these options only. */
type LocalOptions = Pick<CompileOptions, typeof OPTIONS[number]>;

/** Recent graphs of ranks by the traced graph. */
const localGraphs = new WeakMap<Graph, Map<string, LocalGraph>>();

/** Maximum number of these graphs. */
const MAX_GRAPHS = 2;

/**
 * The graph of a rank. Plans that differ in other options, such as chunks, share one. Throws ModelError and
 * PlacementError.
 */
export function localGraphOf(
  traced: Graph,
  options: LocalOptions,
): LocalGraph {
  return cachedWith(localGraphs, traced, {
    key: JSON.stringify(OPTIONS.map((name) => options[name])),
    max: MAX_GRAPHS,
    create: () => createLocalGraph(traced, options),
  });
}

function createLocalGraph(traced: Graph, options: LocalOptions): LocalGraph {
  const mesh = meshAxes(options.mesh ?? {});
  const { zero = 0 } = options;
  const simple = rewrite(traced, options);
  checkStates(simple);
  checkSlices(traced, options);
  const place = readPlacement(simple, mesh, options);
  const facts = axisFacts(
    simple,
    place.mesh,
    place.requests,
    stagesOf(simple, place.mesh, options.stages),
  );
  checkSizes(facts);
  if (options.pipeline !== undefined && !facts.stages) {
    throw new PlacementError(
      `Cannot use pipeline schedule '${options.pipeline}': the mesh has no axis 'pp'. Add it to the mesh, such as pp=2`,
    );
  }
  const sharded = shard(facts, {
    // Accumulated gradients are always sharded: the same bytes are sent, and less memory is needed.
    shardsState: (name) => zero > 0 || name.startsWith(accumulatedName("")),
    shardsParameters: zero === 3,
    dispatcher: dispatcherOf(options),
    combinesTerms: options.numerics === "fast",
  });
  const { pipeline: schedule = SCHEDULE_NAMES[0] } = options;
  const { graph, pipeline } = scheduleStages(sharded, facts.stages, schedule);
  return { ...localize(facts, graph), pipeline };
}

/** Adds the outputs and roundings that options request to a graph of all ranks. */
function rewrite(
  traced: Graph,
  {
    recordSquares: squares = false,
    countDropped: counts = false,
    wire = "f32",
    zero = 0,
  }: LocalOptions,
): Graph {
  const recorded = squares ? recordSquares(traced) : traced;
  const counted = counts ? countDropped(recorded) : recorded;
  const simple = simplify(roundExchanges(counted, wire));
  return zero === 3 ? recomputeViews(simple) : simple;
}

function dispatcherOf(
  { dispatcher, numerics }: LocalOptions,
): Dispatcher | undefined {
  if (dispatcher === undefined || numerics === "fast") return dispatcher;
  if (!dispatcherWords(dispatcher).reorders) return dispatcher;
  throw new ModelError(
    `Cannot use dispatcher '${dispatcher}': it adds the results of a token in another order than one rank does, and numerics are 'exact'. Compile with 'fast' numerics, or use 'allToAll'`,
  );
}

/** Throws PlacementError if experts are to be sliced and cannot be. */
function checkSlices(
  { nodes }: Graph,
  { sliceExperts, numerics }: LocalOptions,
): void {
  if (!sliceExperts) return;
  if (nodes.some(({ phase }) => phase !== undefined)) {
    throw new PlacementError(
      "Cannot slice experts in training: gradients of their rows are not added over ranks. Train entire experts",
    );
  }
  if (numerics === "fast") return;
  throw new PlacementError(
    "Cannot slice experts: the results of a token are added in another order than one rank does, and numerics are 'exact'. Compile with 'fast' numerics, or with entire experts",
  );
}
