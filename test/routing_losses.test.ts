/** Losses of routers on meshes, with tokens sharded over ranks. */
// needs: cpu, gpu
// rotates with: compiler/graph/routing, compiler/kernels/routing/router

import t from "tap";
import {
  add,
  balancingLoss,
  biasUpdate,
  combine,
  dispatch,
  dot,
  importanceLoss,
  mean,
  type Model,
  model,
  route,
  type RoutingPreset,
  softmax,
  upTo,
  zLoss,
} from "../compiler/mod.ts";
import { graphWithGradients } from "./helpers/gradients.ts";
import {
  type Case,
  closeDevices,
  digest,
  holds,
  matches,
  runCase,
} from "./helpers/run_model.ts";

const over = "expert";

/** All losses of a routing over a dynamic token axis, and the output of the layer. */
function lossesOf(preset: RoutingPreset, topK: number): Case {
  return {
    model: model({ token: upTo(40), embed: 8, ffn: 6, expert: 5 }, (m) => {
      const x = m.input("x", "token embed");
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const bias = m.param("bias", "expert");
      const mask = m.input("mask", "token", { dtype: "i32" });
      const routing = route(logits, { over, topK, preset, bias, mask });
      const up = m.param("up.{expert}", "expert ffn embed");
      const down = m.param("down.{expert}", "expert embed ffn");
      const inner = dot(dispatch(x, routing), up, "embed");
      const scores = softmax(logits, over);
      const balanced = balancingLoss(logits, routing, { over });
      const z = zLoss(logits, { over });
      return {
        y: combine(dot(inner, down, "ffn"), routing),
        balanced,
        z,
        both: add(balanced, z),
        masked: balancingLoss(logits, routing, { over, mask }),
        zMasked: zLoss(logits, { over, mask }),
        importance: importanceLoss(scores, { over }),
        load: importanceLoss(routing.kept, { over, unbiased: true }),
        settled: balancingLoss(logits, routing, { over, fraction: "settled" }),
        bias: biasUpdate(bias, routing, { rate: 0.125, centred: true }),
      };
    }),
    lengths: { token: 23 },
    calls: [{
      mask: Array.from({ length: 23 }, (_, i) => i % 5 === 3 ? 0 : 1),
    }],
  };
}

const MESHES = [{ mesh: { ep: 3 } }, { mesh: { dp: 2, ep: 2 } }];

holds("losses of a dropless router", lossesOf("deepseekV3", 2), MESHES);
holds("losses of a router that drops", lossesOf("deepspeed.topk", 3), MESHES);
holds(
  "losses of a router that assigns slots choice by choice",
  lossesOf("tutel.topk", 2),
  [
    {},
    ...MESHES,
  ],
);

holds("losses by sequence", {
  model: model({ sequence: 6, token: 7, expert: 4 }, (m) => {
    const logits = m.input("logits", "sequence token expert");
    const routing = route(logits, {
      over,
      topK: 1,
      preset: "switch.top1",
      group: "sequence",
      capacity: { slots: 2 },
    });
    const each = balancingLoss(logits, routing, { over, per: "sequence" });
    return {
      each,
      average: mean(each, "sequence"),
      slot: routing.slot,
      z: zLoss(logits, { over, per: "sequence" }),
    };
  }),
}, MESHES);

/** Six sequences in one token axis; the last has no tokens. */
const sequence = Array.from({ length: 23 }, (_, i) => (7 * i + (i >> 2)) % 5);

/**
 * Losses per sequence. Tokens are assigned by sequence if the router has a capacity per sequence, otherwise in blocks.
 */
function packed(preset: "deepspeed.top2" | "deepseekV3"): Case & {
  readonly model: Model;
} {
  const axes = { token: upTo(40), expert: 5, sequence: 6, embed: 8 };
  return {
    model: model(axes, (m) => {
      const x = m.input("x", "token embed");
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const group = m.input("sequence", "token", { dtype: "i32" });
      const mask = m.input("mask", "token", { dtype: "i32" });
      const routing = route(logits, { over, topK: 2, preset, group });
      const per = { over, per: "sequence", group } as const;
      const each = balancingLoss(logits, routing, per);
      return {
        each,
        loss: mean(each, "sequence"),
        masked: balancingLoss(logits, routing, { ...per, mask }),
        z: zLoss(logits, per),
        importance: importanceLoss(softmax(logits, over), per),
      };
    }),
    lengths: { token: 23 },
    calls: [{ sequence, mask: sequence.map((s) => s === 4 ? 0 : 1) }],
  };
}

for (const preset of ["deepspeed.top2", "deepseekV3"] as const) {
  const of = packed(preset);
  holds(`losses per sequence, ${preset}`, of, [{}, ...MESHES]);

  t.test(`losses per sequence have the bits of one rank, ${preset}`, async (t) => {
    const one = digest(await runCase(of, "cpu"));
    for (const options of MESHES) {
      const found = digest(await runCase(of, "cpu", options));
      t.equal(found, one, JSON.stringify(options));
    }
  });

  t.test(`gradients of losses per sequence, ${preset}`, async (t) => {
    const gradients = { ...of, model: await graphWithGradients(of.model) };
    await matches(t, gradients, "cpu", [{}, ...MESHES]);
  });

  t.test(`an unknown sequence is rejected, ${preset}`, async (t) => {
    const wrong = { ...of, calls: [{ sequence: sequence.with(9, 6) }] };
    for (const options of [{}, ...MESHES]) {
      await t.rejects(runCase(wrong, "cpu", options), {
        name: "DataError",
        message: /'sequence'.* 6/,
      }, JSON.stringify(options));
    }
  });
}

t.teardown(closeDevices);
