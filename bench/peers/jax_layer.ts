/** The expert layer in jax-js. The host groups rows by expert, because functions with fixed shapes cannot. */

import { groupByExpert } from "./grouping.ts";
import { type JaxArray, loadJax, takeValues } from "./jax.ts";
import { LAYER_SIZES } from "./layer.ts";
import { type LayerWeights, transposed } from "./onnx.ts";

/** Runs the layer once. */
export async function jaxLayer(
  adapter: string,
  weights: LayerWeights,
  x: Float32Array,
): Promise<() => Promise<Float32Array>> {
  const { numpy: np, nn, lax, jit } = await loadJax(adapter);
  const { tokens, embed, ffn, experts, topK } = LAYER_SIZES;
  const matrix = (of: Float32Array, to: number, from: number) =>
    np.array(transposed(of, to, from), { shape: [from, to] });
  const router = matrix(weights.router, experts, embed);
  const parts = weights.gate.map((gate, e) => ({
    gate: matrix(gate, ffn, embed),
    up: matrix(weights.up[e]!, ffn, embed),
    down: matrix(weights.down[e]!, embed, ffn),
  }));
  // Compiled for each number of rows, which is constant here.
  const expert = jit((rows: JaxArray, gate: JaxArray, up: JaxArray) => {
    const g = np.matmul(rows.ref, gate);
    return nn.sigmoid(g.ref).mul(g).mul(np.matmul(rows, up));
  });
  return async () => {
    const rows = np.array(x, { shape: [tokens, embed] });
    const logits = np.matmul(rows.ref, router.ref);
    const [values, indices] = lax.topK(logits, topK);
    const shares = nn.softmax(values, -1).reshape([tokens, topK, 1]);
    const index = await takeValues(indices);
    const { order, choiceRow, counts } = groupByExpert(index, experts);
    const from = order.map((i) => Math.floor(i / topK));
    const sent = np.take(rows, np.array(from), 0);
    let start = 0;
    const done = counts.flatMap((count, e) => {
      if (count === 0) return [];
      const local = sent.ref.slice([start, start + count], []);
      start += count;
      const { gate, up, down } = parts[e]!;
      return [np.matmul(expert(local, gate.ref, up.ref), down.ref)];
    });
    sent.dispose();
    const back = np.take(np.concatenate(done, 0), np.array(choiceRow), 0);
    return await takeValues(
      back.reshape([tokens, topK, embed]).mul(shares).sum(1),
    );
  };
}
