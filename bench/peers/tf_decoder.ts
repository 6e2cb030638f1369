/**
 * The bundled checkpoint in TensorFlow.js. For one token, the weights of its experts are gathered; for several tokens,
 * all experts compute.
 */

import { type Demo, joined } from "./demo.ts";
import type { StepDecoder } from "./gpu_decode.ts";
import { transposed } from "./onnx.ts";
import { rotations } from "./onnx_decoder.ts";
import { loadTf, type Tf, type TfTensor, valuesOf } from "./tfjs.ts";

type Cache = { keys: TfTensor; values: TfTensor }[];

/** Opens the checkpoint in TensorFlow.js. */
export async function tfDecoder(
  adapter: string,
  demo: Demo,
): Promise<StepDecoder> {
  const tf = await loadTf(adapter);
  const forward = decoderOf(tf, demo);
  let cache: Cache = [];
  let count = 0;
  return {
    reset: () => {
      tf.dispose(cache);
      [cache, count] = [[], 0];
    },
    step: async (tokens) => {
      const old = cache;
      const { logits, grown } = tf.tidy(() => forward(tokens, count, old));
      tf.dispose(old);
      cache = grown;
      count += tokens.length;
      const values = await valuesOf(logits);
      tf.dispose(logits);
      return values;
    },
    close: () => Promise.resolve(),
  };
}

function decoderOf(tf: Tf, demo: Demo) {
  const { config } = demo;
  const [embed, ffn] = [config.hidden_size, config.intermediate_size];
  const [heads, experts] = [config.num_attention_heads, config.num_experts];
  const size = embed / heads;
  const f32 = (data: Float32Array, ...shape: number[]) =>
    tf.tensor(data, shape, "float32");
  const matrix = (data: Float32Array, to: number, from = embed) =>
    f32(transposed(data, to, from), from, to);
  const stacked = (parts: readonly Float32Array[], to: number, from: number) =>
    f32(
      joined(parts.map((part) => transposed(part, to, from))),
      experts,
      from,
      to,
    );
  const [cosines, sines] = rotations(demo).map((table) =>
    f32(table, config.max_position_embeddings, 1, size / 2)
  ) as [TfTensor, TfTensor];
  const embedding = f32(demo.embedding, config.vocab_size, embed);
  const head = matrix(demo.embedding, config.vocab_size);
  const last = f32(demo.norm, embed);
  const layers = demo.layers.map((layer) => ({
    norm: f32(layer.norm, embed),
    q: matrix(layer.q, embed),
    k: matrix(layer.k, embed),
    v: matrix(layer.v, embed),
    o: matrix(layer.o, embed),
    qNorm: f32(layer.qNorm, embed),
    kNorm: f32(layer.kNorm, embed),
    ffnNorm: f32(layer.ffnNorm, embed),
    router: matrix(layer.router, experts),
    gate: stacked(layer.gate, ffn, embed),
    up: stacked(layer.up, ffn, embed),
    down: stacked(layer.down, embed, ffn),
  }));
  const norm = (x: TfTensor, gain: TfTensor) => {
    const square = tf.mean(tf.square(x), -1, true);
    const scale = tf.rsqrt(tf.add(square, config.rms_norm_eps));
    return tf.mul(tf.mul(x, scale), gain);
  };
  const swiglu = (rows: TfTensor, gate: TfTensor, up: TfTensor) => {
    const g = tf.matMul(rows, gate);
    return tf.mul(tf.mul(g, tf.sigmoid(g)), tf.matMul(rows, up));
  };
  const feed = (rows: TfTensor, layer: (typeof layers)[number]) => {
    const shares = tf.softmax(tf.matMul(rows, layer.router));
    const { values, indices } = tf.topk(shares, config.num_experts_per_tok);
    const [tokens, k] = values.shape as [number, number];
    if (tokens === 1) {
      const chosen = tf.reshape(indices, [k]);
      const ofChosen = (of: TfTensor) => tf.gather(of, chosen);
      const each = tf.concat(new Array<TfTensor>(k).fill(rows), 0);
      const hidden = swiglu(
        tf.expandDims(each, 1),
        ofChosen(layer.gate),
        ofChosen(layer.up),
      );
      const done = tf.reshape(tf.matMul(hidden, ofChosen(layer.down)), [
        k,
        embed,
      ]);
      return tf.matMul(values, done);
    }
    const min = tf.slice(values, [0, k - 1], [tokens, 1]);
    const top = tf.where(
      tf.greaterEqual(shares, min),
      shares,
      tf.zerosLike(shares),
    );
    const hidden = swiglu(tf.expandDims(rows, 0), layer.gate, layer.up);
    const byExpert = tf.expandDims(tf.transpose(top, [1, 0]), 2);
    return tf.sum(tf.mul(tf.matMul(hidden, layer.down), byExpert), 0);
  };
  return (ids: readonly number[], from: number, cache: Cache) => {
    const count = ids.length;
    const table = (of: TfTensor) =>
      tf.slice(of, [from, 0, 0], [count, 1, size / 2]);
    const [cos, sin] = [table(cosines), table(sines)];
    const turn = (x: TfTensor) => {
      const part = (at: number) =>
        tf.slice(x, [0, 0, at], [count, heads, size / 2]);
      const [a, b] = [part(0), part(size / 2)];
      return tf.concat([
        tf.sub(tf.mul(a, cos), tf.mul(b, sin)),
        tf.add(tf.mul(b, cos), tf.mul(a, sin)),
      ], 2);
    };
    const split = (x: TfTensor) => tf.reshape(x, [count, heads, size]);
    const byHead = (x: TfTensor) => tf.transpose(x, [1, 0, 2]);
    const total = from + count;
    const mask = tf.tensor(
      Float32Array.from(
        { length: count * total },
        (_, i) => i % total <= from + Math.floor(i / total) ? 0 : -1e30,
      ),
      [1, count, total],
      "float32",
    );
    const grown: Cache = [];
    let x = tf.gather(
      embedding,
      tf.tensor(Int32Array.from(ids), [count], "int32"),
    );
    for (const [i, layer] of layers.entries()) {
      const rows = norm(x, layer.norm);
      const q = turn(split(norm(tf.matMul(rows, layer.q), layer.qNorm)));
      const k = turn(split(norm(tf.matMul(rows, layer.k), layer.kNorm)));
      const before = cache[i];
      const join = (old: TfTensor | undefined, added: TfTensor) =>
        old ? tf.concat([old, added], 1) : added;
      const keys = join(before?.keys, byHead(k));
      const values = join(
        before?.values,
        byHead(split(tf.matMul(rows, layer.v))),
      );
      grown.push({ keys, values });
      const scores = tf.mul(
        tf.matMul(byHead(q), keys, false, true),
        1 / Math.sqrt(size),
      );
      const y = tf.matMul(tf.softmax(tf.add(scores, mask)), values);
      const attended = tf.reshape(tf.transpose(y, [1, 0, 2]), [count, embed]);
      x = tf.add(x, tf.matMul(attended, layer.o));
      x = tf.add(x, feed(norm(x, layer.ffnNorm), layer));
    }
    const end = tf.slice(x, [count - 1, 0], [1, embed]);
    return { logits: tf.matMul(norm(end, last), head), grown };
  };
}
