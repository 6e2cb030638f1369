/** Wire formats of exchanged rows: specified rounding, the same bits on every mesh, and sent bytes. */
// needs: cpu, gpu
// rotates with: spec/wire.ts, compiler/graph/round_exchanges.ts, compiler/kernels/wire.ts

import t from "tap";
import {
  combine,
  type CompileOptions,
  dispatch,
  dot,
  map,
  model,
  route,
  upTo,
} from "../compiler/mod.ts";
import { roundExchanges } from "../compiler/graph/round_exchanges.ts";
import { trace } from "../compiler/graph/trace.ts";
import { PACKED_ELEMENTS } from "../spec/weights/packed.ts";
import { FP8_BLOCK, roundToWire } from "../spec/wire.ts";
import { countedRun } from "./helpers/counted_run.ts";
import {
  type Case,
  closeDevices,
  digest,
  EXPERT_MESHES,
  matches,
  runCase,
  skip,
} from "./helpers/run_model.ts";
import { stepCase } from "./helpers/training_layer.ts";

t.teardown(closeDevices);

const MESHES: readonly CompileOptions[] = [...EXPERT_MESHES, {
  mesh: { tp: 2 },
}, {
  mesh: { tp: 2, ep: 2 },
}];

/** A layer of eight experts, two per token. */
function layer(embed: number): Case {
  return {
    model: model({ token: upTo(12), embed, ffn: 8, expert: 8 }, (m) => {
      const x = m.input("x", "token embed");
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const routing = route(logits, {
        over: "expert",
        topK: 2,
        preset: "mixtral",
      });
      const up = m.param("experts.{expert}.up", "expert ffn embed");
      const down = m.param("experts.{expert}.down", "expert embed ffn");
      const hidden = map(
        (u) => Math.max(u, 0),
        dot(dispatch(x, routing), up, "embed"),
      );
      return { y: combine(dot(hidden, down, "ffn"), routing) };
    }),
  };
}

/** Rows that an expert returns unchanged, with weight 1. */
function echo(x: readonly number[]): Case {
  const embed = x.length;
  return {
    model: model({ token: upTo(1), embed, expert: 2 }, (m) => {
      const input = m.input("x", "token embed");
      const logits = dot(input, m.param("router", "expert embed"), "embed");
      const routing = route(logits, {
        over: "expert",
        topK: 1,
        preset: "mixtral",
      });
      // Inputs are finite, so a large value is made here.
      const x = map((v) => v === 12345 ? v * 1e37 : v, input);
      return { y: combine(dispatch(x, routing), routing) };
    }),
    calls: [{ x }],
  };
}

/** The nearest value of E4M3 times `scale`; ties to the even code. */
function nearest(x: number, scale: number): number {
  const codes = Array.from({ length: 0x7f }, (_, code) => code);
  const far = (code: number) =>
    Math.abs(PACKED_ELEMENTS.fp8.value(code) * scale - Math.abs(x));
  const best = codes.reduce((a, b) =>
    far(b) < far(a) || far(b) === far(a) && b % 2 === 0 ? b : a
  );
  return Math.sign(x) * PACKED_ELEMENTS.fp8.value(best) * scale;
}

const SPECIAL = {
  bf16: [
    ...[1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, -3.140625],
    ...[2 ** -133, 3.4e38, 0, -1e-30],
  ],
  // Max magnitude 448, just above it with a factor of 1.001; ties, subnormal codes, and values that round to 0.
  fp8: [
    ...[448, -17, 18, 19, 2 ** -9, 2 ** -10, 3 * 2 ** -10, 1e-9],
    ...[2 ** -6, 2 ** -6 - 2 ** -11, 240.1, -0.3],
  ],
};

t.test("rows are rounded to the nearest numbers of the format", async (t) => {
  t.strictSame(
    roundToWire("bf16", SPECIAL.bf16),
    [
      ...[1, 1 + 2 ** -6, 1 + 2 ** -7, -3.140625],
      ...[2 ** -133, Infinity, 0, -1e-30 * 1.0014662742614746],
    ].map((x, i) => i === 7 ? roundToWire("bf16", [-1e-30])[0]! : x),
  );
  for (const factor of [1, 1.001, 1.9, 2 ** -70, 2 ** 60]) {
    const x = SPECIAL.fp8.map((x) => Math.fround(x * factor));
    const scale = factor === 1.001 ? 2 : factor === 1.9 ? 2 : factor;
    t.strictSame(
      roundToWire("fp8", x).map(Math.abs),
      (448 * factor < 2 ** -55
        ? x.map(() => 0)
        : x.map((x) => nearest(x, scale))).map(Math.abs),
      `times ${factor}`,
    );
  }
  const long = Array.from(
    { length: FP8_BLOCK + 6 },
    (_, i) => Math.fround(Math.sin(i * i) * 2 ** (i % 9)),
  );
  const rows = {
    bf16: [SPECIAL.bf16, long],
    fp8: [SPECIAL.fp8, long, [1, 12345, -2], [1e-20, -3e-30]],
  };
  for (const wire of ["bf16", "fp8"] as const) {
    for (const x of rows[wire]) {
      const wanted = roundToWire(
        wire,
        x.map((v) => v === 12345 ? Infinity : v),
      );
      t.strictSame(
        roundToWire(wire, wanted),
        wanted,
        "rounded rows are unchanged",
      );
      for (const mesh of [{}, { ep: 2 }]) {
        const [found] = await runCase(echo(x), "cpu", { mesh, wire });
        const same = [...found!.y!.data].every((y, i) =>
          y === wanted[i] || Number.isNaN(y) && Number.isNaN(wanted[i])
        );
        t.ok(same, `${wire} ${JSON.stringify(mesh)}: ${found!.y!.data}`);
      }
    }
  }
});

for (const kind of ["cpu", "gpu"] as const) {
  t.test(`a layer uses rounded rows on every mesh, ${kind}`, {
    skip: kind === "gpu" && skip,
  }, async (t) => {
    const of = layer(FP8_BLOCK + 3);
    const bits = new Set<string>();
    for (const wire of ["bf16", "fp8"] as const) {
      const rounded = roundExchanges(trace(of.model as never), wire);
      await matches(t, { ...of, model: rounded }, kind, [{
        mesh: { ep: 2 },
      }]);
      const wanted = digest(await runCase(of, kind, { wire }));
      bits.add(wanted);
      for (const mesh of kind === "gpu" ? [] : MESHES) {
        const found = await runCase(of, kind, { ...mesh, wire });
        t.equal(digest(found), wanted, `${wire} ${JSON.stringify(mesh)}`);
      }
    }
    bits.add(digest(await runCase(of, kind)));
    t.equal(bits.size, 3, "formats differ");
  });
}

t.test("bytes of dispatch and combine", async (t) => {
  const sent = { dispatch: 0, combine: 0 };
  for (const wire of ["f32", "bf16", "fp8"] as const) {
    const { ranks } = await countedRun(t, layer(256), {
      mesh: { ep: 2 },
      wire,
    });
    const [dispatch, combine] = (["dispatch", "combine"] as const).map((op) =>
      ranks.reduce((n, { sentBytes }) => n + sentBytes[op]!.actual, 0)
    ) as [number, number];
    if (wire === "f32") Object.assign(sent, { dispatch, combine });
    const ratio = { f32: 1, bf16: 1 / 2, fp8: 1 / 4 + 1 / FP8_BLOCK }[wire];
    t.equal(dispatch, sent.dispatch * ratio, wire);
    t.equal(combine, sent.combine * (wire === "f32" ? 1 : 1 / 2), wire);
  }
  t.ok(sent.dispatch > 0);
});

t.test("a training step rejects lossy formats", async (t) => {
  const { model } = await stepCase();
  t.throws(
    () => roundExchanges(model as never, "fp8"),
    /^Cannot train with wire 'fp8': gradients are exchanged in f32\. Use wire 'f32'/,
  );
});
