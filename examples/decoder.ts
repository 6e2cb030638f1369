// A complete decoder with a key-value cache. Run it on random data on four ranks: switchyard run examples/decoder.ts
// --random --mesh ep=4
import {
  add,
  attention,
  combine,
  dispatch,
  dot,
  embedding,
  map,
  model,
  rmsNorm,
  rope,
  route,
  type Tensor,
  upTo,
} from "switchyard-moe";

const LAYERS = 2;

export const decoder = model(
  {
    token: upTo(64),
    sequence: 4,
    context: 128,
    vocab: 256,
    embed: 64,
    head: 4,
    kvHead: 2,
    headDim: 16,
    expert: 6,
    ffn: 96,
  },
  (m) => {
    const ids = m.input("ids", "token", { dtype: "i32" });
    const sequence = m.input("sequence", "token", { dtype: "i32" });
    const position = m.input("position", "token", { dtype: "i32" });
    const states: { [name: string]: Tensor } = {};

    let x = embedding(m.param("embed", "vocab embed"), ids, "vocab");
    for (let i = 0; i < LAYERS; i++) {
      // Attention: queries and keys are rotated by position; keys and values are kept for later steps.
      const normed = rmsNorm(x, m.param(`layers.${i}.norm`, "embed"), "embed");
      const q = dot(
        normed,
        m.param(`layers.${i}.query`, "head headDim embed"),
        "embed",
      );
      const k = dot(
        normed,
        m.param(`layers.${i}.key`, "kvHead headDim embed"),
        "embed",
      );
      const v = dot(
        normed,
        m.param(`layers.${i}.value`, "kvHead headDim embed"),
        "embed",
      );
      const cache = "sequence context kvHead headDim";
      const { y, keys, values } = attention(
        rope(q, "headDim", { position }),
        {
          key: rope(k, "headDim", { position }),
          value: v,
          keys: m.state(`layers.${i}.keys`, cache),
          values: m.state(`layers.${i}.values`, cache),
          sequence,
          position,
        },
      );
      states[`layers.${i}.keys`] = keys;
      states[`layers.${i}.values`] = values;
      const output = m.param(`layers.${i}.output`, "embed head headDim");
      x = add(x, dot(y, output, "head headDim"));

      // Experts: each token is sent to two of them, and the result is their weighted sum.
      const rows = rmsNorm(
        x,
        m.param(`layers.${i}.expert_norm`, "embed"),
        "embed",
      );
      const logits = dot(
        rows,
        m.param(`layers.${i}.router`, "expert embed"),
        "embed",
      );
      const routing = route(logits, {
        over: "expert",
        topK: 2,
        preset: "mixtral",
      });
      const sent = dispatch(rows, routing);
      const gate = dot(
        sent,
        m.param(`layers.${i}.experts.{expert}.gate`, "expert ffn embed"),
        "embed",
      );
      const up = dot(
        sent,
        m.param(`layers.${i}.experts.{expert}.up`, "expert ffn embed"),
        "embed",
      );
      const hidden = map((g, u) => (g / (1 + Math.exp(-g))) * u, gate, up);
      const done = dot(
        hidden,
        m.param(`layers.${i}.experts.{expert}.down`, "expert embed ffn"),
        "ffn",
      );
      x = add(x, combine(done, routing));
    }
    const last = rmsNorm(x, m.param("norm", "embed"), "embed");
    const logits = dot(last, m.param("head", "vocab embed"), "embed");
    return { logits, ...states };
  },
);
