// A model that predicts the next byte of a text from the previous eight bytes, and its training with experts on two
// ranks: npx switchyard train examples/train/next_byte.ts --steps 200 --out trained
import { readFileSync } from "node:fs";
import {
  adamw,
  add,
  balancingLoss,
  combine,
  crossEntropy,
  dispatch,
  dot,
  einsum,
  embedding,
  map,
  model,
  mul,
  rmsNorm,
  route,
  train,
  upTo,
} from "switchyard-moe";

const WINDOW = 8, BATCH = 256;

const sizes = {
  token: upTo(BATCH),
  window: WINDOW,
  byte: 256,
  part: 16,
  embed: 64,
  ffn: 64,
  expert: 8,
};

export const nextByte = model(sizes, (m) => {
  const before = m.input("before", "token window", { dtype: "i32" });
  const next = m.input("next", "token", { dtype: "i32" });
  const bytes = embedding(m.param("bytes", "byte part"), before, "byte");
  const x = einsum(
    "token window part, embed window part -> token embed",
    bytes,
    m.param("mix", "embed window part"),
  );
  const rows = rmsNorm(x, m.param("norm", "embed"), "embed");
  const logits = dot(rows, m.param("router", "expert embed"), "embed");
  const routing = route(logits, {
    over: "expert",
    topK: 2,
    preset: "mixtral",
  });
  const sent = dispatch(rows, routing);
  const up = dot(sent, m.param("{expert}.up", "expert ffn embed"), "embed");
  const done = dot(
    map((u) => u / (1 + Math.exp(-u)), up),
    m.param("{expert}.down", "expert embed ffn"),
    "ffn",
  );
  const y = add(x, combine(done, routing));
  const guess = dot(
    rmsNorm(y, m.param("last_norm", "embed"), "embed"),
    m.param("guess", "byte embed"),
    "embed",
  );
  const ce_loss = crossEntropy(guess, next, { over: "byte" });
  const aux_loss = balancingLoss(logits, routing, { over: "expert" });
  return {
    ce_loss,
    aux_loss,
    loss: add(ce_loss, mul(aux_loss, 0.1)),
    // The chosen experts; 'switchyard train' shows their load.
    "layer0.topk_idx": routing.index,
  };
});

// The source of this file, wherever it is copied.
const text = readFileSync(new URL(import.meta.url));

/** Returns pseudo-random positions of the text. The batch of a step is always the same. */
function batch(step: number) {
  const before = new Int32Array(BATCH * WINDOW), next = new Int32Array(BATCH);
  for (let i = 0; i < BATCH; i++) {
    const from = ((step - 1) * BATCH + i) * 7919 % (text.length - WINDOW);
    before.set(text.subarray(from, from + WINDOW), i * WINDOW);
    next[i] = text[from + WINDOW]!;
  }
  return {
    before: { dtype: "i32" as const, shape: [BATCH, WINDOW], data: before },
    next: { dtype: "i32" as const, shape: [BATCH], data: next },
  };
}

export const training = train(nextByte, {
  optimizer: adamw({ betas: [0.9, 0.95], weightDecay: 0.1 }),
  schedule: { rate: 0.01, warmup: 10, decay: 200 },
  clipNorm: 1,
  mesh: { ep: 2 },
  data: batch,
});
