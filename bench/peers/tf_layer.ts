/** The expert layer in TensorFlow.js. The host groups rows by expert, because its operators cannot. */

import { groupByExpert } from "./grouping.ts";
import { LAYER_SIZES } from "./layer.ts";
import { type LayerWeights, transposed } from "./onnx.ts";
import { loadTf, type TfTensor, valuesOf } from "./tfjs.ts";

/** Runs the layer once. */
export async function tfLayer(
  adapter: string,
  weights: LayerWeights,
  x: Float32Array,
): Promise<() => Promise<Float32Array>> {
  const tf = await loadTf(adapter);
  const { tokens, embed, ffn, experts, topK } = LAYER_SIZES;
  const matrix = (of: Float32Array, to: number, from: number) =>
    tf.tensor(transposed(of, to, from), [from, to], "float32");
  const router = matrix(weights.router, experts, embed);
  const parts = weights.gate.map((gate, e) => ({
    gate: matrix(gate, ffn, embed),
    up: matrix(weights.up[e]!, ffn, embed),
    down: matrix(weights.down[e]!, embed, ffn),
  }));
  const expert = (rows: TfTensor, e: number): TfTensor => {
    const { gate, up, down } = parts[e]!;
    const g = tf.matMul(rows, gate);
    const hidden = tf.mul(tf.mul(g, tf.sigmoid(g)), tf.matMul(rows, up));
    return tf.matMul(hidden, down);
  };
  return async () => {
    const first = tf.tidy(() => {
      const rows = tf.tensor(x, [tokens, embed], "float32");
      const { values, indices } = tf.topk(tf.matMul(rows, router), topK);
      return { rows, indices, shares: tf.softmax(values) };
    });
    const index = await valuesOf(first.indices);
    const { order, choiceRow, counts } = groupByExpert(index, experts);
    const y = tf.tidy(() => {
      const ints = (values: Int32Array) =>
        tf.tensor(values, [values.length], "int32");
      const sent = tf.gather(first.rows, ints(order.map((i) => i / topK | 0)));
      let from = 0;
      const done = counts.flatMap((count, e) => {
        if (count === 0) return [];
        const rows = tf.slice(sent, [from, 0], [count, embed]);
        from += count;
        return [expert(rows, e)];
      });
      const back = tf.gather(tf.concat(done, 0), ints(choiceRow));
      const each = tf.reshape(back, [tokens, topK, embed]);
      return tf.sum(tf.mul(each, tf.expandDims(first.shares, 2)), 1);
    });
    const values = await valuesOf(y);
    tf.dispose({ ...first, y });
    return values;
  };
}
