/**
 * The block of experts of Switch Transformers (arXiv 2101.03961), as transformers has it: one expert for each token, with
 * the weight that the softmax gives it, and so many slots of an expert in each sequence, in the order of tokens. What
 * finds no slot comes out as 0; the residual is outside.
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
} from "../compiler/mod.ts";

/** Sizes of a block. */
export interface SwitchBlock {
  readonly sequences: number;
  /** Of each sequence. */
  readonly tokens: number;
  readonly embed: number;
  readonly ffn: number;
  readonly experts: number;
  /** Slots of an expert in a sequence. */
  readonly capacity: number;
  /** The router has a bias. */
  readonly routerBias: boolean;
}

/**
 * The block as a model. Its parameters have the names of `SwitchTransformersSparseMLP`. Outputs: `output`; what the
 * router did, `router_logits`, `router_mask` (1 for the expert that a token is kept by) and `expert_index`, in which
 * transformers names expert 0 for tokens that are dropped; and its losses `z_loss` and `aux_loss`, where they count so
 * too.
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
    // A slot is -1 where the token is dropped: times 0 there, else times 1.
    const kept = add(minimum(routing.slot, 0), 1);
    const balance = balancingLoss(logits, routing, {
      over: "expert",
      per: "sequence",
    });
    return {
      output: combine(done, routing),
      router_logits: logits,
      router_mask: cast(routing.kept, "i32"),
      expert_index: mul(routing.index, kept),
      z_loss: zLoss(logits, { over: "expert" }),
      aux_loss: mean(balance, "sequence"),
    };
  });
}
