/** Noise from a seed: the generator's published vectors, its distributions, and ranges of a stream. */

import t from "tap";
import { gumbelNoise, type NoiseOptions, uniformNoise } from "../engine/mod.ts";
import { philox } from "../engine/noise.ts";

t.test("philox() reproduces the published vectors", (t) => {
  const resultOf = (counter: number[], key: readonly [number, number]) => {
    const words = Uint32Array.from(counter);
    philox(words, key);
    return [...words].map((w) => w.toString(16).padStart(8, "0")).join(" ");
  };
  const full = 0xffffffff;
  t.equal(
    resultOf([0, 0, 0, 0], [0, 0]),
    "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
  );
  t.equal(
    resultOf([full, full, full, full], [full, full]),
    "408f276d 41c83b0e a20bc7c6 6d5451fd",
  );
  t.equal(
    resultOf(
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
    ),
    "d16cfe09 94fdcceb 5001e420 24126ea1",
  );
  t.end();
});

t.test("a range of a stream equals that range of all numbers", (t) => {
  const draws = { uniformNoise, gumbelNoise };
  for (const [name, draw] of Object.entries(draws)) {
    const all = draw(41, { seed: 9, stream: 2 });
    for (const [first, end] of [[0, 41], [3, 11], [4, 5], [37, 41]]) {
      const part = draw(end! - first!, { seed: 9, stream: 2, first: first! });
      t.same(part, all.slice(first, end), `${name} ${first} to ${end}`);
    }
    const others: NoiseOptions[] = [
      { seed: 10, stream: 2 },
      { seed: 9 },
      { seed: 9 + 2 ** 40, stream: 2 },
    ];
    for (const other of others) t.notSame(draw(41, other), all);
  }
  t.end();
});

t.test("numbers have the expected distribution", (t) => {
  const count = 20000;
  const moments = (xs: Float32Array) => {
    const mean = xs.reduce((a, b) => a + b, 0) / count;
    const variance = xs.reduce((a, b) => a + (b - mean) ** 2, 0) / count;
    return { mean, variance };
  };
  const uniform = uniformNoise(count, { seed: 3 });
  t.ok(uniform.every((x) => x > 0 && x < 1), "within bounds");
  t.ok(Math.abs(moments(uniform).mean - 1 / 2) < 0.01);
  t.ok(Math.abs(moments(uniform).variance - 1 / 12) < 0.003);
  const gumbel = moments(gumbelNoise(count, { seed: 3 }));
  t.ok(Math.abs(gumbel.mean - 0.5772) < 0.03);
  t.ok(Math.abs(gumbel.variance - Math.PI ** 2 / 6) < 0.06);
  const jitter = uniformNoise(count, { seed: 3, low: 0.99, high: 1.01 });
  t.ok(jitter.every((x) => x >= Math.fround(0.99) && x <= Math.fround(1.01)));
  t.end();
});

t.test("bad seeds are rejected", (t) => {
  for (const seed of [-1, 0.5, NaN, 2 ** 53]) {
    t.throws(() => uniformNoise(1, { seed }), {
      name: "DataError",
      message:
        `Cannot draw noise with seed ${seed}: expected a whole number from 0 to 9007199254740991`,
    });
  }
  t.end();
});
