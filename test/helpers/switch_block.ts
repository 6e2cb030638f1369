/**
 * The expert block of Switch Transformers (arXiv 2101.03961), as in transformers. Each token has one expert, with its
 * softmax weight. An expert has a fixed number of slots per sequence, which tokens fill in order. The result of a token
 * without a slot is 0; the residual is outside of the block.
 */

import {
  add,
  balancingLoss,
  cast,
  combine,
  dispatch,
  dot,
  maximum,
  mean,
  minimum,
  type Model,
  model,
  mul,
  route,
  zLoss,
} from "../../compiler/mod.ts";

/** Sizes of a block. */
export interface SwitchBlock {
  readonly sequences: number;
  /** Tokens per sequence. */
  readonly tokens: number;
  readonly embed: number;
  readonly ffn: number;
  readonly experts: number;
  /** Slots of an expert per sequence. */
  readonly capacity: number;
  /** The router has a bias. */
  readonly routerBias: boolean;
}

/**
 * The block as a model. Its parameters have the names of `SwitchTransformersSparseMLP`. Outputs are `output`, the
 * router's results and the losses. The router's results are `router_logits`, `router_mask` (1 for the expert that keeps
 * a token) and `expert_index`; for dropped tokens, the index is 0 as in transformers. The losses `z_loss` and
 * `aux_loss` count dropped tokens in the same way.
 */
export function switchBlock(block: SwitchBlock): Model {
  return model({
    sequence: block.sequences,
    token: block.tokens,
    embed: block.embed,
    ffn: block.ffn,
    expert: block.experts,
  }, (m) => {
    const x = m.input("input", "sequence token embed");
    const scores = dot(
      x,
      m.param("router.classifier.weight", "expert embed"),
      "embed",
    );
    const logits = block.routerBias
      ? add(scores, m.param("router.classifier.bias", "expert"))
      : scores;
    const routing = route(logits, {
      ...{ over: "expert", topK: 1, preset: "switch.top1" } as const,
      group: "sequence",
      capacity: { slots: block.capacity },
    });
    const at = "experts.expert_{expert}";
    const hidden = maximum(
      dot(
        dispatch(x, routing),
        m.param(`${at}.wi.weight`, "expert ffn embed"),
        "embed",
      ),
      0,
    );
    const done = dot(
      hidden,
      m.param(`${at}.wo.weight`, "expert embed ffn"),
      "ffn",
    );
    // A slot is -1 if the token is dropped. The factor is then 0, otherwise 1.
    const assigned = add(minimum(routing.slot, 0), 1);
    const balance = balancingLoss(logits, routing, {
      over: "expert",
      per: "sequence",
    });
    return {
      output: combine(done, routing),
      router_logits: logits,
      router_mask: cast(routing.kept, "i32"),
      expert_index: mul(routing.index, assigned),
      z_loss: zLoss(logits, { over: "expert" }),
      aux_loss: mean(balance, "sequence"),
    };
  });
}
