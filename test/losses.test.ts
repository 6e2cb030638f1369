/** Losses of routers, each against a short implementation. */

import t from "tap";
import {
  add,
  balancingLoss,
  biasUpdate,
  importanceLoss,
  mean,
  model,
  route,
  type Routing,
  type Scope,
  softmax,
  type Tensor,
  zLoss,
} from "../compiler/mod.ts";
import type { Tensors } from "../compiler/graph/evaluate/evaluate.ts";
import { softmaxRow } from "../compiler/graph/evaluate/routing.ts";
import { gradientsHold } from "./helpers/gradients.ts";
import {
  EXPERTS,
  LOGITS,
  near,
  ROWS,
  runLogits,
  TOKENS,
} from "./helpers/router_logits.ts";
import { waves } from "./helpers/waves.ts";

type Net = Scope<"token" | "expert" | "batch" | "layer">;

/** Evaluates losses of the logits of `batch` sequences. */
function losses(
  batch: number,
  build: (
    m: Net,
    logits: Tensor<"batch token expert", "f32">,
    routing: Routing<"batch token", "expert">,
  ) => { [name: string]: Tensor },
  inputs: Tensors = {},
): { [name: string]: number[] } {
  const sizes = { batch, token: TOKENS / batch, expert: EXPERTS, layer: 1 };
  const net = model(sizes, (m) => {
    const logits = m.input("logits", "batch token expert");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    return build(m as Net, logits, routing);
  });
  return runLogits(net, inputs);
}

/** Numbers of choices of each expert by the given tokens. */
function load(tokens: readonly number[]): number[] {
  const counts = new Array<number>(EXPERTS).fill(0);
  for (const s of tokens) {
    const row = ROWS[s]!;
    const best = row.map((_, e) => e)
      .sort((a, b) => row[b]! - row[a]!).slice(0, 2);
    for (const e of best) counts[e]!++;
  }
  return counts;
}

/** Sum over experts of the share of choices times the mean probability, for the given tokens. */
function balance(tokens: readonly number[]): number {
  const chosen = load(tokens);
  const p = new Array<number>(EXPERTS).fill(0);
  for (const s of tokens) {
    softmaxRow(ROWS[s]!).forEach((x, e) => p[e]! += x / tokens.length);
  }
  // Without tokens, the sum is 0.
  const count = Math.max(tokens.length, 1);
  return chosen.reduce((sum, n, e) => sum + n / count * p[e]!, 0);
}

const ALL = Array.from({ length: TOKENS }, (_, s) => s);

t.test("balancingLoss() by batch, by sequence, over layers, masked", (t) => {
  const real = [0, 2, 3, 7, 11];
  const over = "expert";
  const found = losses(3, (m, logits, routing) => {
    const mask = m.input("mask", "batch token", { dtype: "i32" });
    const sequences = balancingLoss(logits, routing, { over, per: "batch" });
    return {
      whole: balancingLoss(logits, routing, { over }),
      sequences,
      average: mean(sequences, "batch"),
      layers: balancingLoss([logits, logits], [routing, routing], { over }),
      masked: balancingLoss(logits, routing, { over, mask }),
      plain: balancingLoss(logits, routing, { over, factor: 1 }),
    };
  }, { mask: ALL.map((s) => real.includes(s) ? 1 : 0) });
  const sequences = [0, 4, 8].map((s) =>
    EXPERTS * balance([s, s + 1, s + 2, s + 3])
  );
  near(t, found["whole"]!, [EXPERTS * balance(ALL)], "by batch");
  near(t, found["sequences"]!, sequences, "by sequence");
  near(t, found["average"]!, [sequences.reduce((a, b) => a + b) / 3]);
  near(t, found["layers"]!, [EXPERTS * balance(ALL)], "over layers");
  near(t, found["masked"]!, [EXPERTS * balance(real)], "masked");
  near(t, found["plain"]!, [balance(ALL)], "with a factor");
  t.end();
});

t.test("losses per group, with groups given as integers", (t) => {
  // Interleaved sequences 0, 1 and 3; sequence 2 has no tokens.
  const group = [1, 0, 1, 1, 3, 0, 3, 1, 0, 3, 3, 1];
  const real = ALL.map((s) => s % 4 === 2 ? 0 : 1);
  const of = (g: number, counted = ALL) =>
    counted.filter((s) => group[s] === g);
  const over = "expert";
  const net = model({ token: TOKENS, expert: EXPERTS, sequence: 4 }, (m) => {
    const logits = m.input("logits", "token expert");
    const mask = m.input("mask", "token", { dtype: "i32" });
    const routing = route(logits, { over, topK: 2, preset: "mixtral" });
    const per = {
      per: "sequence",
      group: m.input("group", "token", { dtype: "i32" }),
    } as const;
    const scores = softmax(logits, over);
    return {
      balance: balancingLoss(logits, routing, { over, ...per }),
      masked: balancingLoss(logits, routing, { over, ...per, mask }),
      z: zLoss([logits, logits], { over, ...per }),
      importance: importanceLoss(scores, { over, ...per }),
    };
  });
  const inputs = { group, mask: real };
  const { balance: found, masked, z, importance } = runLogits(net, inputs);
  const each = <T>(f: (tokens: readonly number[]) => T, counted = ALL) =>
    [0, 1, 2, 3].map((g) => f(of(g, counted)));
  const wanted = (tokens: readonly number[]) => EXPERTS * balance(tokens);
  near(t, found!, each(wanted), "balance");
  near(t, masked!, each(wanted, ALL.filter((s) => real[s])), "masked");
  near(
    t,
    z!,
    each((tokens) =>
      tokens.reduce(
        (sum, s) =>
          sum +
          Math.log(ROWS[s]!.reduce((a, x) => a + Math.exp(x), 0)) ** 2,
        0,
      ) / Math.max(1, tokens.length)
    ),
    "z",
  );
  const variation = (tokens: readonly number[]) => {
    const sums = Array.from(
      { length: EXPERTS },
      (_, e) => tokens.reduce((sum, s) => sum + softmaxRow(ROWS[s]!)[e]!, 0),
    );
    const average = sums.reduce((a, b) => a + b) / EXPERTS;
    const squares = sums.reduce((sum, x) => sum + (x - average) ** 2, 0);
    return squares / EXPERTS / (average ** 2 + 1e-10);
  };
  near(t, importance!, each(variation), "importance");
  t.equal(found![2], 0, "sequence 2 has no tokens");
  t.throws(() => runLogits(net, { ...inputs, group: group.with(5, 4) }), {
    name: "DataError",
    message: "Cannot read 'sequence' 4: expected a whole number from 0 to 3",
  });
  t.end();
});

t.test("balancingLoss() treats layers as one concatenated batch", (t) => {
  const half = TOKENS / 2;
  const net = model({ token: half, expert: EXPERTS }, (m) => {
    const layers = ["a", "b"].map((name) => m.input(name, "token expert"));
    const routings = layers.map((logits) =>
      route(logits, { over: "expert", topK: 2, preset: "mixtral" })
    );
    return {
      loss: balancingLoss(layers, routings, { over: "expert" }),
      z: zLoss(layers, { over: "expert" }),
    };
  });
  const { loss, z } = runLogits(net, {
    a: LOGITS.slice(0, half * EXPERTS),
    b: LOGITS.slice(half * EXPERTS),
  });
  near(t, loss!, [EXPERTS * balance(ALL)]);
  const squares = ROWS.map((row) =>
    Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) ** 2
  );
  near(t, z!, [squares.reduce((a, b) => a + b) / TOKENS]);
  t.end();
});

t.test("zLoss() by sequence and masked", (t) => {
  const squares = ROWS.map((row) =>
    Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) ** 2
  );
  const average = (tokens: readonly number[]) =>
    tokens.reduce((sum, s) => sum + squares[s]!, 0) / tokens.length;
  const real = [1, 5, 6];
  const found = losses(2, (m, logits) => ({
    each: zLoss(logits, { over: "expert", per: "batch" }),
    masked: zLoss(logits, {
      over: "expert",
      mask: m.input("mask", "batch token", { dtype: "i32" }),
    }),
    none: zLoss(logits, {
      over: "expert",
      mask: m.input("nothing", "batch token", { dtype: "i32" }),
    }),
  }), {
    mask: ALL.map((s) => real.includes(s) ? 1 : 0),
    nothing: ALL.map(() => 0),
  });
  near(t, found["each"]!, [average(ALL.slice(0, 6)), average(ALL.slice(6))]);
  near(t, found["masked"]!, [average(real)]);
  t.same(found["none"], [0], "all tokens are masked");
  t.end();
});

t.test("importanceLoss() is the squared variation of the sums", (t) => {
  const sums = ROWS.map(softmaxRow).reduce((all, row) =>
    all.map((x, e) => x + row[e]!)
  );
  const average = sums.reduce((a, b) => a + b) / EXPERTS;
  const squares = sums.reduce((sum, x) => sum + (x - average) ** 2, 0);
  const found = losses(1, (_, logits, routing) => {
    const scores = softmax(logits, "expert");
    return {
      plain: importanceLoss(scores, { over: "expert" }),
      unbiased: importanceLoss(scores, { over: "expert", unbiased: true }),
      load: importanceLoss(routing.chosen, { over: "expert" }),
    };
  });
  const plain = squares / EXPERTS / (average ** 2 + 1e-10);
  near(t, found["plain"]!, [plain]);
  near(t, found["unbiased"]!, [plain * EXPERTS / (EXPERTS - 1)]);
  const counts = load(ALL);
  const even = TOKENS * 2 / EXPERTS;
  const uneven = counts.reduce((sum, n) => sum + (n - even) ** 2, 0);
  t.ok(uneven > 0, "some experts are chosen more often");
  near(t, found["load"]!, [uneven / EXPERTS / (even ** 2 + 1e-10)]);
  t.end();
});

t.test("biasUpdate() raises the bias of underloaded experts", (t) => {
  const net = model({ token: 4, expert: EXPERTS, choice: 1 }, (m) => {
    const bias = m.input("bias", "expert");
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: 1,
      preset: "deepseekV3",
      bias,
      choices: m.input("choices", "token choice", { dtype: "i32" }),
    });
    return {
      plain: biasUpdate(bias, routing, { rate: 0.25 }),
      centred: biasUpdate(bias, routing, { rate: 0.25, centred: true }),
    };
  });
  const { plain, centred } = runLogits(net, {
    bias: [1, 2, 3, 4],
    choices: [0, 0, 0, 2],
    logits: LOGITS.slice(0, 4 * EXPERTS),
  });
  t.same(plain, [0.75, 2.25, 3, 4.25]);
  t.same(centred, [0.75 - 0.0625, 2.25 - 0.0625, 3 - 0.0625, 4.25 - 0.0625]);
  t.end();
});

t.test("losses with missing operands are rejected", (t) => {
  const over = "expert";
  t.throws(
    () =>
      losses(1, (_, logits, routing) => ({
        y: balancingLoss([logits], [routing, routing], { over }),
      })),
    {
      message:
        "Cannot balance 2 routings by the logits of 1: the numbers differ. Give the logits of each",
    },
  );
  t.throws(
    () =>
      losses(1, (_, logits) => ({ y: zLoss(logits, { over, per: "layer" }) })),
    { message: /^Cannot zLoss 'batch token expert' over 'layer'/ },
  );
  const grouped = (per: string | undefined, axes = "batch token") =>
    losses(1, (m, logits) => ({
      y: zLoss(logits, {
        over,
        ...per ? { per } : {},
        group: m.input("g", axes as "batch token", { dtype: "i32" }),
      }),
    }));
  const cannot = "Cannot group the tokens of 'batch token expert'";
  t.throws(() => grouped(undefined), {
    message: `${cannot}: no axis is named for the groups. Give 'per'`,
  });
  t.throws(() => grouped("sequence"), {
    message:
      `${cannot} along 'sequence': the model has no such axis. Declare it, as long as there are groups`,
  });
  t.throws(() => grouped("batch"), {
    message:
      `${cannot} along 'batch': they have that axis already. Leave 'group' out, or name another axis`,
  });
  t.throws(() => grouped("layer", "token"), {
    message: `${cannot} by i32[token]: expected i32[batch token]`,
  });
  t.throws(
    () =>
      losses(1, (m, _, routing) => ({
        y: biasUpdate(m.input("b", "token") as never, routing, { rate: 1 }),
      })),
    { message: "Cannot update bias 'token': expected 'expert'" },
  );
  t.end();
});

t.test("gradients of losses per group", async (t) => {
  const net = model({ token: 8, expert: 4, sequence: 3 }, (m) => {
    const logits = m.param("logits", "token expert");
    const group = m.input("sequence", "token", { dtype: "i32" });
    const per = { over: "expert", per: "sequence", group } as const;
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "deepseekV3",
    });
    const losses = [
      balancingLoss(logits, routing, per),
      zLoss(logits, per),
      importanceLoss(softmax(logits, "expert"), per),
    ] as const;
    return {
      loss: mean(add(add(losses[0], losses[1]), losses[2]), "sequence"),
    };
  });
  await gradientsHold(t, {
    model: net,
    inputs: { sequence: [0, 2, 2, 0, 1, 2, 0, 1] },
    params: { logits: waves(32) },
  });
});
