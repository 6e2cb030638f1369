// One mixture-of-experts layer. Run it on random data: switchyard run examples/layer.ts --random --mesh ep=4
import {
  add,
  combine,
  dispatch,
  dot,
  map,
  model,
  route,
  upTo,
} from "switchyard-moe";

export const layer = model(
  { token: upTo(4096), embed: 512, ffn: 1024, expert: 8 },
  (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const sent = dispatch(x, routing);
    const gate = dot(
      sent,
      m.param("experts.{expert}.gate", "expert ffn embed"),
      "embed",
    );
    const up = dot(
      sent,
      m.param("experts.{expert}.up", "expert ffn embed"),
      "embed",
    );
    const hidden = map((g, u) => (g / (1 + Math.exp(-g))) * u, gate, up);
    const done = dot(
      hidden,
      m.param("experts.{expert}.down", "expert embed ffn"),
      "ffn",
    );
    return { y: add(x, combine(done, routing)) };
  },
);
