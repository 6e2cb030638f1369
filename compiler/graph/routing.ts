/** Router presets: what each published router does, as data. */

import type { RoutingRule } from "./graph.ts";

/** Presets by name. Sources: transformers `modeling_mixtral.py`, `modeling_olmoe.py`; fairscale `top2gate.py`. */
export const ROUTING_PRESETS = {
  "mixtral": { score: "softmax", normalize: "chosen" },
  "olmoe": { score: "softmax", normalize: "none" },
  "fairscale.top2": {
    score: "softmax",
    normalize: "kept",
    capacity: "fairscale.top2",
  },
} as const satisfies { [preset: string]: Omit<RoutingRule, "preset" | "topK"> };

/** The name of a router preset. */
export type RoutingPreset = keyof typeof ROUTING_PRESETS;
