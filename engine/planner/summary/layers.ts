/** FLOPs and bytes of layers per token, with equal layers together. */

import type { ParamFacts } from "../../../compiler/mod.ts";
import { expectedExchanges, toOthers } from "../../../spec/plan/exchanges.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import { layerOf, layersOf } from "../../../spec/plan/layers.ts";
import type { Representatives } from "./representatives.ts";
import { layerSeconds, type Predictions } from "./predictions.ts";
import type {
  ExchangeSummary,
  LayerClass,
} from "../../../spec/plan_summary.ts";

/** Classes of equal layers, in the order of their first layer. Nodes without a layer number form one class. */
export function layerClasses(
  plan: Plan,
  { params, representatives, predicted }: {
    readonly params: readonly ParamFacts[];
    readonly representatives: Representatives;
    readonly predicted: Predictions;
  },
): LayerClass[] {
  const exchanges = exchangesOf(plan);
  const byLayer = new Map<number | undefined, ParamFacts[]>();
  for (const param of params) {
    const layer = layerOf(param.name);
    byLayer.set(layer, [...byLayer.get(layer) ?? [], param]);
  }
  const classes = new Map<string, EqualLayers>();
  for (const [layer, parameters] of byLayer) {
    const fields: LayerFields = {
      kind: layer === undefined
        ? "vocabulary"
        : parameters.some(({ expert }) => expert !== undefined)
        ? "experts"
        : "dense",
      flopsPerToken: 2 * parameters.filter(({ use }) => use === "matrix")
        .reduce((n, { active }) => n + active, 0),
      exchanges: exchanges.get(layer) ?? [],
    };
    const key = JSON.stringify(fields);
    const known = classes.get(key) ?? { fields, built: [], layers: [] };
    known.built.push(layer);
    if (layer !== undefined) known.layers.push(...representatives.of(layer));
    classes.set(key, known);
  }
  // Models without layer numbers have one layer.
  const single = byLayer.size === 1;
  return [...classes.values()]
    .sort((a, b) =>
      Number(a.layers.length === 0) - Number(b.layers.length === 0)
    )
    .map(({ fields, built, layers }) => ({
      count: Math.max(1, layers.length),
      ...fields,
      ...single && byLayer.has(undefined)
        ? {
          kind: params.some(({ expert }) => expert !== undefined)
            ? "experts" as const
            : "dense" as const,
        }
        : {},
      layers: rangesOf(layers.sort((a, b) => a - b)),
      ...layerSeconds(predicted, built, representatives),
    }));
}

type LayerFields = Omit<LayerClass, "count" | "layers">;

/** Equal layers: the built ones, and all that they represent. */
interface EqualLayers {
  readonly fields: LayerFields;
  readonly built: (number | undefined)[];
  readonly layers: number[];
}

/** `0-2, 4` */
function rangesOf(layers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const layer of layers) {
    const last = ranges.at(-1);
    if (last && last[1] + 1 === layer) last[1]++;
    else ranges.push([layer, layer]);
  }
  return ranges.map(([a, b]) => a === b ? `${a}` : `${a}-${b}`).join(", ");
}

/** Exchanges of each layer, by number. */
function exchangesOf(plan: Plan): Map<number | undefined, ExchangeSummary[]> {
  const found = new Map<number | undefined, ExchangeSummary[]>();
  const [program] = plan.programs;
  if (!program) return found;
  const { numbers, of } = layersOf(plan, program);
  for (const exchange of expectedExchanges(plan, program)) {
    const { index, op: name, step: { over } } = exchange;
    const layer = numbers[of[index]!];
    const list = found.get(layer) ?? [];
    const known = list.findIndex((other) =>
      other.name === name && other.over.join() === over.join()
    );
    const before = known < 0 ? 0 : list[known]!.bytesPerToken;
    const bytesPerToken = Math.round(before + toOthers(plan, exchange));
    const entry = { name, bytesPerToken, over };
    if (known < 0) list.push(entry);
    else list[known] = entry;
    found.set(layer, list);
  }
  return found;
}
