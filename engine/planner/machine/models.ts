/** Small models for measuring devices. */

import {
  add,
  attention,
  combine,
  dispatch,
  dot,
  type Model,
  model,
  mul,
  rmsNorm,
  route,
  swiglu,
  type Tensor,
  upTo,
} from "../../../compiler/mod.ts";

/** Maximum tokens of a measured step, and of a sequence. */
export const MAX_TOKENS = 4096, SEQUENCE = 64;

/** `launches` nearly empty kernels, one after another, on tokens that index a state. */
export function chainModel(launches: number): Model {
  const sizes = {
    token: upTo(64),
    sequence: 64,
    context: SEQUENCE,
    head: 1,
    kvHead: 1,
    headDim: 64,
  };
  return model(sizes, (m) => {
    const scale = m.param("scale", "headDim");
    const query = m.input("x", "token head headDim");
    const key = m.input("key", "token kvHead headDim");
    const cache = "sequence context kvHead headDim";
    const { y, keys, values } = attention(query, {
      key,
      value: key,
      sequence: m.input("sequence", "token", { dtype: "i32" }),
      position: m.input("position", "token", { dtype: "i32" }),
      keys: m.state("keys", cache),
      values: m.state("values", cache),
    });
    let x: Tensor<string, "f32"> = y;
    for (let i = 0; i < launches; i++) x = rmsNorm(x, scale, "headDim");
    return { y: x, keys, values };
  });
}

/** The ops of a decoder besides matmuls: attention and norms of some layers. */
export function operationsModel(layers: number): Model {
  return model(
    {
      token: upTo(MAX_TOKENS),
      sequence: MAX_TOKENS / SEQUENCE,
      context: SEQUENCE,
      head: 4,
      kvHead: 4,
      headDim: 32,
    },
    (m) => {
      const sequence = m.input("sequence", "token", { dtype: "i32" });
      const position = m.input("position", "token", { dtype: "i32" });
      const scale = m.param("scale", "headDim");
      let x: Tensor<string, "f32"> = m.input("x", "token head headDim");
      const key = m.input("key", "token kvHead headDim");
      const states: { [name: string]: Tensor } = {};
      for (let i = 0; i < layers; i++) {
        const cache = "sequence context kvHead headDim";
        const { y, keys, values } = attention(x, {
          key,
          value: key,
          sequence,
          position,
          keys: m.state(`${i}.keys`, cache),
          values: m.state(`${i}.values`, cache),
        });
        states[`${i}.keys`] = keys;
        states[`${i}.values`] = values;
        x = rmsNorm(add(x, y), scale, "headDim");
      }
      return { y: x, ...states };
    },
  );
}

/** A layer of gated experts: grouped matmuls whose weights exceed the cache of a core, as in real models. */
export function expertsModel({ embed = 512, ffn = 1024 } = {}): Model {
  return model(
    { token: upTo(MAX_TOKENS), embed, ffn, expert: 4 },
    (m) => {
      const x = m.input("x", "token embed");
      const logits = m.input("logits", "token expert");
      const routing = route(logits, {
        over: "expert",
        topK: 2,
        preset: "mixtral",
      });
      const sent = dispatch(x, routing);
      const gate = m.param("gate", "expert ffn embed");
      const up = m.param("up", "expert ffn embed");
      const down = m.param("down", "expert embed ffn");
      const hidden = swiglu(dot(sent, gate, "embed"), dot(sent, up, "embed"));
      return { y: add(x, combine(dot(hidden, down, "ffn"), routing)) };
    },
  );
}

/** Narrow matmuls, with one workgroup for a few tokens and many for many. */
export function narrowModel(matmuls: number): Model {
  return model({ token: upTo(MAX_TOKENS), embed: 2048, narrow: 16 }, (m) => {
    const x = m.input("x", "token embed");
    return Object.fromEntries(
      Array.from({ length: matmuls }, (_, i) => [
        `y${i}`,
        dot(x, m.param(`w${i}`, "narrow embed"), "embed"),
      ]),
    );
  });
}

/** Experts per rank in models with dispatch: the cost of an exchange depends on the number of counts. */
export const EXPERTS_OF_RANK = 4;

/** Rows of 1 KiB that are dispatched and combined, up to `rows` from each of some ranks to each. */
export function exchangeModel(ranks: number, rows: number): Model {
  return dispatchesModel({ ranks, rows, dispatches: 1, launches: 0 });
}

/** Several such dispatches with some small kernels before each. */
export function dispatchesModel(
  { ranks, rows, dispatches, launches }: {
    readonly ranks: number;
    readonly rows: number;
    readonly dispatches: number;
    readonly launches: number;
  },
): Model {
  const sizes = {
    token: upTo(rows * ranks * ranks),
    embed: 256,
    expert: EXPERTS_OF_RANK * ranks,
  };
  return model(sizes, (m) => {
    const scale = m.param("scale", "embed");
    const logits = m.input("logits", "token expert");
    const routing = route(logits, {
      over: "expert",
      topK: 1,
      preset: "mixtral",
    });
    let x: Tensor<string, "f32"> = m.input("x", "token embed");
    for (let i = 0; i < dispatches; i++) {
      for (let j = 0; j < launches; j++) x = rmsNorm(x, scale, "embed");
      x = combine(dispatch(x, routing), routing);
    }
    // Without launches nothing else would use the parameter.
    return { y: mul(x, scale) };
  });
}
