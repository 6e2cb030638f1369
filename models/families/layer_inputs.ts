/**
 * Per-layer inputs in the small models of Gemma 4: a second embedding of each token for each layer, mixed with the main
 * one.
 */

import {
  add,
  dot,
  embedding,
  gelu,
  merge,
  mul,
  rmsNorm,
  slice,
  split,
  type Tensor,
} from "switchyard-moe";
import {
  type DecoderScope,
  type Layer,
  type Rows,
  type Start,
} from "switchyard-moe/models";

/** Axes: the input of a layer, the inputs of all layers, the layers, and a factor. */
type Axes = "layerInput" | "layerInputs" | "layer" | "one";

/** The inputs of all layers, `layerInput` elements each. */
type LayerInputs = Tensor<"token layerInputs", "f32">;

/** (table[ids] · sqrt(n) + rms(projection · embeddings / sqrt(embed))) / sqrt(2), for all layers. */
export function layerInputs(
  m: DecoderScope<Axes>,
  { ids, rows }: Start,
  { epsilon, wrapped, layerInput, embed }: {
    readonly epsilon: number;
    readonly wrapped: boolean;
    readonly layerInput: number;
    readonly embed: number;
  },
): LayerInputs {
  const model = wrapped ? "model.language_model" : "model";
  const name = (tensor: string) => `${model}.${tensor}.weight`;
  const table = m.param(name("embed_tokens_per_layer"), "vocab layerInputs");
  const embedded = mul(embedding(table, ids, "vocab"), Math.sqrt(layerInput));
  const projection = m.param(
    name("per_layer_model_projection"),
    "layerInputs embed",
  );
  const projected = mul(dot(rows, projection, "embed"), embed ** -0.5);
  const normed = rmsNorm(
    split(projected, "layerInputs", "layer layerInput"),
    m.param(name("per_layer_projection_norm"), "layerInput"),
    "layerInput",
    { epsilon },
  );
  const mixed = add(merge(normed, "layer layerInput", "layerInputs"), embedded);
  return mul(mixed, Math.SQRT1_2);
}

/** Adds the gated input of a layer to its rows. */
export function addLayerInputs(
  scope: DecoderScope<Axes>,
  x: Rows,
  layer: Layer,
  { given, layerInput }: {
    readonly given: LayerInputs;
    readonly layerInput: number;
  },
): Rows {
  const m: DecoderScope = scope;
  const mine = layer.pick(
    m,
    slice(given, "layerInputs", layer.index * layerInput, "layerInput"),
  );
  return layer.residual(x, (rows) => {
    const down = scope.param(
      "per_layer_input_gate.weight",
      "layerInput embed",
    );
    const gate = gelu(dot(rows, down, "embed"), { approximate: "tanh" });
    const up = scope.param(
      "per_layer_projection.weight",
      "embed layerInput",
    );
    return layer.norm(
      m,
      dot(mul(gate, mine), up, "layerInput"),
      "post_per_layer_input_norm.weight",
    );
  });
}
