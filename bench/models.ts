/** Models of the benchmarks. */

import {
  add,
  attention,
  combine,
  dispatch,
  dot,
  embedding,
  type Model,
  model,
  rmsNorm,
  rope,
  route,
  swiglu,
  type Tensor,
  upTo,
} from "../compiler/mod.ts";

/** Sizes of a decoder. */
export interface DecoderSizes {
  readonly layers: number;
  readonly experts: number;
  readonly topK: number;
  readonly embed: number;
  readonly ffn: number;
}

/** A decoder with attention, cache and experts in every layer. */
export function decoderModel(
  { layers, experts, topK, embed, ffn }: DecoderSizes,
): Model {
  return model(
    {
      token: upTo(512),
      sequence: 16,
      context: 2048,
      vocab: 32000,
      embed,
      head: 16,
      kvHead: 4,
      headDim: 64,
      expert: experts,
      ffn,
    },
    (m) => {
      const ids = m.input("ids", "token", { dtype: "i32" });
      const sequence = m.input("sequence", "token", { dtype: "i32" });
      const position = m.input("position", "token", { dtype: "i32" });
      const states: { [name: string]: Tensor } = {};
      let x = embedding(m.param("embed", "vocab embed"), ids, "vocab");
      for (let i = 0; i < layers; i++) {
        const at = `layers.${i}`;
        const normed = rmsNorm(x, m.param(`${at}.norm`, "embed"), "embed");
        const cache = "sequence context kvHead headDim";
        const query = m.param(`${at}.q`, "head headDim embed");
        const key = m.param(`${at}.k`, "kvHead headDim embed");
        const value = m.param(`${at}.v`, "kvHead headDim embed");
        const { y, keys, values } = attention(
          rope(dot(normed, query, "embed"), "headDim", { position }),
          {
            key: rope(dot(normed, key, "embed"), "headDim", { position }),
            value: dot(normed, value, "embed"),
            keys: m.state(`${at}.keys`, cache),
            values: m.state(`${at}.values`, cache),
            sequence,
            position,
          },
        );
        states[`${at}.keys`] = keys;
        states[`${at}.values`] = values;
        const output = m.param(`${at}.o`, "embed head headDim");
        x = add(x, dot(y, output, "head headDim"));
        const rows = rmsNorm(x, m.param(`${at}.ffn_norm`, "embed"), "embed");
        const router = m.param(`${at}.router`, "expert embed");
        const routing = route(dot(rows, router, "embed"), {
          over: "expert",
          topK,
          preset: "mixtral",
        });
        const sent = dispatch(rows, routing);
        const gate = m.param(`${at}.{expert}.gate`, "expert ffn embed");
        const up = m.param(`${at}.{expert}.up`, "expert ffn embed");
        const down = m.param(`${at}.{expert}.down`, "expert embed ffn");
        const hidden = swiglu(dot(sent, gate, "embed"), dot(sent, up, "embed"));
        x = add(x, combine(dot(hidden, down, "ffn"), routing));
      }
      const last = rmsNorm(x, m.param("norm", "embed"), "embed");
      return {
        logits: dot(last, m.param("head", "vocab embed"), "embed"),
        ...states,
      };
    },
  );
}

/**
 * Returns the source of a model with `layers` expert layers written out one after the other. It measures the cost of
 * type checking.
 */
export function unrolledSource(layers: number): string {
  const body = Array.from({ length: layers }, (_, i) => {
    const from = i === 0 ? "x" : `x${i - 1}`;
    return `
  const n${i} = rmsNorm(${from}, m.param("l${i}.norm", "embed"), "embed");
  const r${i} = route(dot(n${i}, m.param("l${i}.router", "expert embed"), "embed"), { over: "expert", topK: 2, preset: "mixtral" });
  const s${i} = dispatch(n${i}, r${i});
  const g${i} = dot(s${i}, m.param("l${i}.{expert}.gate", "expert ffn embed"), "embed");
  const u${i} = dot(s${i}, m.param("l${i}.{expert}.up", "expert ffn embed"), "embed");
  const h${i} = map((g, u) => (g / (1 + Math.exp(-g))) * u, g${i}, u${i});
  const d${i} = dot(h${i}, m.param("l${i}.{expert}.down", "expert embed ffn"), "ffn");
  const x${i} = add(${from}, combine(d${i}, r${i}));`;
  });
  return `import { add, combine, dispatch, dot, map, model, rmsNorm, route, upTo } from "switchyard-moe";
export const unrolled = model({ token: upTo(4096), embed: 512, ffn: 1024, expert: 8 }, (m) => {
  const x = m.input("x", "token embed");${body.join("")}
  return { y: x${layers - 1} };
});
`;
}

/** The experts of one layer with their router: 3.2 Gflop for 512 tokens. */
export function expertLayer(tokens: number): Model {
  return model(
    { token: upTo(tokens), embed: 512, ffn: 1024, expert: 8 },
    (m) => {
      const x = m.input("x", "token embed");
      const router = m.param("router", "expert embed");
      const routing = route(dot(x, router, "embed"), {
        over: "expert",
        topK: 2,
        preset: "mixtral",
      });
      const sent = dispatch(x, routing);
      const gate = m.param("{expert}.gate", "expert ffn embed");
      const up = m.param("{expert}.up", "expert ffn embed");
      const down = m.param("{expert}.down", "expert embed ffn");
      const hidden = swiglu(dot(sent, gate, "embed"), dot(sent, up, "embed"));
      return { y: combine(dot(hidden, down, "ffn"), routing) };
    },
  );
}
