/** The load of experts: how often routers chose each. */

import type { RoutedExperts } from "../generation/sampling.ts";

/** Choices of the experts of a layer. */
export interface LayerLoad {
  readonly choices: number;
  /** Choices of the most chosen expert. */
  readonly max: number;
}

/** Counts choices by layer and expert. */
export class ExpertLoad {
  readonly #counts: Map<number, number>[] = [];

  /** Adds the choices for a token. */
  add(experts: RoutedExperts): void {
    for (const [layer, chosen] of experts.entries()) {
      const counts = this.#counts[layer] ??= new Map();
      for (const expert of chosen) {
        counts.set(expert, (counts.get(expert) ?? 0) + 1);
      }
    }
  }

  /** Totals of layers. */
  get layers(): LayerLoad[] {
    return this.#counts.map((counts) => {
      const values = [...counts.values()];
      return {
        choices: values.reduce((sum, count) => sum + count, 0),
        max: Math.max(...values),
      };
    });
  }
}
