/** Layer to train on meshes: experts, a router and a gain, with losses of outputs, load balance and the gain. */

import {
  add,
  balancingLoss,
  combine,
  dispatch,
  dot,
  map,
  mean,
  type Model,
  model,
  mul,
  route,
  type RoutingPreset,
  sum,
  upTo,
} from "../../compiler/mod.ts";
import { trace } from "../../compiler/graph/trace.ts";
import { trainStep } from "../../compiler/graph/train_step.ts";
import { lowerScalars } from "../../compiler/scalars.ts";
import { type Case, waves } from "./run_model.ts";

/** The layer. Its gain is used before and after the experts, and in the loss. */
export function layer(preset: RoutingPreset, topK: number) {
  return model({ token: upTo(40), embed: 6, ffn: 5, expert: 8 }, (m) => {
    const gain = m.param("gain", "embed");
    const x = mul(m.input("x", "token embed"), gain);
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, { over: "expert", topK, preset });
    const sent = dispatch(x, routing);
    const hidden = map(
      (g, u) => g / (1 + Math.exp(-g)) * u,
      dot(sent, m.param("gate.{expert}", "expert ffn embed"), "embed"),
      add(
        dot(sent, m.param("up.{expert}", "expert ffn embed"), "embed"),
        m.param("bias.{expert}", "expert ffn"),
      ),
    );
    const done = dot(
      hidden,
      m.param("down.{expert}", "expert embed ffn"),
      "ffn",
    );
    const y = add(mul(combine(done, routing), gain), x);
    const squares = mean(sum(map((v) => v * v - 0.5 * v, y), "embed"), "token");
    const balance = balancingLoss(logits, routing, { over: "expert" });
    const decay = sum(map((g) => 0.1 * g * g, gain), "embed");
    return { loss: add(add(squares, mul(balance, 0.3)), decay), balance };
  });
}

/** Calls with many tokens, fewer than ranks, and one. */
export const CALLS = [{ x: waves(37 * 6) }, { x: waves(3 * 6) }, {
  x: waves(6),
}];

/**
 * Training steps of a model with clipped gradients, so that results depend on the norm. Next values are outputs.
 * Default model: the layer.
 */
export async function stepCase(
  trained: Model = layer("mixtral", 2),
): Promise<Case> {
  const graph = trace(trained);
  const step = trainStep(graph, {
    loss: "loss",
    optimizer: { kind: "sgd", momentum: 0.5 },
    clipNorm: 0.05,
  }, await lowerScalars(graph));
  const next = Object.entries(step.states).map(([name, node]) =>
    [`next.${name}`, node] as const
  );
  return {
    model: {
      ...step,
      outputs: { ...step.outputs, ...Object.fromEntries(next) },
    },
    calls: CALLS.map((call, i) => ({
      ...call,
      learning_rate: [0.1],
      step: [i + 1],
    })),
    tolerance: 1e-5,
  };
}
