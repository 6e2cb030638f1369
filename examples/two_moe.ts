// Two expert layers built from one block. Run it on random data: switchyard run examples/two_moe.ts --random --mesh
// ep=2
import {
  add,
  combine,
  dispatch,
  dot,
  model,
  mul,
  route,
  type Scope,
  silu,
  type Tensor,
  upTo,
} from "switchyard-moe";

type Rows = Tensor<"token embed", "f32">;
type MlpScope = Scope<"token" | "embed" | "ffn">;
type MoeScope = Scope<"token" | "embed" | "ffn" | "expert">;

function mlp(m: MlpScope, x: Rows): Rows {
  const gate = dot(x, m.param("gate", "ffn embed"), "embed");
  const up = dot(x, m.param("up", "ffn embed"), "embed");
  const hidden = mul(silu(gate), up);
  return dot(hidden, m.param("down", "embed ffn"), "ffn");
}

/** Experts that a softmax chooses, or sigmoids and a bias, with a shared expert for all tokens. */
function moe(m: MoeScope, x: Rows, router: { topK: number; bias: boolean }) {
  const logits = dot(x, m.param("router.weight", "expert embed"), "embed");
  const chosen = { over: "expert", topK: router.topK } as const;
  const bias = () => m.param("router.bias", "expert");
  const routing = router.bias
    ? route(logits, { ...chosen, preset: "deepseekV3", bias: bias() })
    : route(logits, { ...chosen, preset: "mixtral" });
  const sent = dispatch(x, routing);
  const at = "experts.{expert}";
  const gate = dot(sent, m.param(`${at}.gate`, "expert ffn embed"), "embed");
  const up = dot(sent, m.param(`${at}.up`, "expert ffn embed"), "embed");
  const hidden = mul(silu(gate), up);
  const done = dot(hidden, m.param(`${at}.down`, "expert embed ffn"), "ffn");
  const routed = combine(done, routing);
  return add(routed, m.block("shared", { ffn: 24 }, (m) => mlp(m, x)));
}

export const twoMoe = model({ token: upTo(64), embed: 32 }, (m) => {
  const x = m.input("x", "token embed");
  const y = m.block(
    "layers.0.moe",
    { expert: 6, ffn: 48 },
    (m) => add(x, moe(m, x, { topK: 2, bias: false })),
  );
  const z = m.block(
    "layers.1.moe",
    { expert: 10, ffn: 40 },
    (m) => add(y, moe(m, y, { topK: 3, bias: true })),
  );
  return { y: z };
});
