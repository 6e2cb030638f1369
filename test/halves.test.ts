/** Rounding to 16 bits, in kernels and in host memory: all values, midpoints and neighbours. */
// needs: cpu, gpu

import t from "tap";
import { elementwise, elementwiseGrid } from "../compiler/kernels/mod.ts";
import { narrow } from "../runtime/mod.ts";
import { nearestF16, widen } from "../runtime/half.ts";
import {
  let_,
  load,
  local,
  packBits,
  store,
  u32,
} from "../spec/kernel/build.ts";
import { halves, NAN, nearest } from "./helpers/halves.ts";
import { testKernels, workgroups } from "./helpers/run_kernel.ts";

/** NaNs of both signs: quiet and signalling, with payloads that 16 bits keep or lose. */
const NANS = Uint32Array.of(
  ...[0x7fc00000, 0x7f800001, 0x7f80ffff, 0x7fa00000, 0x7fffffff]
    .flatMap((bits) => [bits, bits | 0x80000000]),
);

/** All values of both signs, midpoints between them and their neighbours; values that overflow, infinity and NaNs. */
function candidates(stored: "f16" | "bf16"): Float32Array {
  const values = halves(stored);
  const largest = values.at(-1)!;
  const beyond = 2 * largest - values.at(-2)!;
  const found: number[] = [Infinity];
  values.forEach((value, i) => {
    const next = values[i + 1] ?? beyond;
    const middle = Math.fround((value + next) / 2);
    const ulp = Math.max(2 ** -149, middle * 2 ** -23);
    for (const x of [value, middle, middle - ulp, middle + ulp]) {
      if (Math.abs(x) <= 3.4028234663852886e38) found.push(Math.fround(x));
    }
  });
  if (stored === "f16") found.push(65519.996, 65520, 7e4, 1e38, 2 ** -140);
  const numbers = found.flatMap((x) => [x, -x]);
  const all = new Float32Array(numbers.length + NANS.length);
  all.set(numbers);
  new Uint32Array(all.buffer).set(NANS, numbers.length);
  return all;
}

for (const stored of ["f16", "bf16"] as const) {
  const values = halves(stored);
  const inputs = candidates(stored);
  const wanted = Uint16Array.from(
    inputs,
    (x) => Number.isNaN(x) ? NAN[stored] : nearest(values, x),
  );
  const firstError = (found: ArrayLike<number>) => {
    const at = wanted.findIndex((bits, i) => bits !== found[i]);
    return at < 0 ? "none" : `${inputs[at]} to ${found[at]}, not ${wanted[at]}`;
  };

  t.test(`${stored} in host memory`, (t) => {
    t.equal(firstError(narrow(stored, inputs)), "none");
    if (stored === "f16") {
      const one = Uint16Array.from(
        inputs,
        (x, i) => Number.isNaN(x) ? wanted[i]! : nearestF16(x),
      );
      t.equal(firstError(one), "none", "of one number");
    }
    const bits = Uint16Array.from(values, (_, i) => i);
    const wide = widen(stored, bits);
    t.ok(values.every((value, i) => wide[i] === value), "decoded values");
    t.ok(Number.isNaN(widen(stored, Uint16Array.of(NAN[stored]))[0]), "NaN");
    t.end();
  });

  testKernels(`${stored} rounded by a kernel`, async (t, target) => {
    // A device may flush subnormal f32 to 0.
    const normal = (x: number) => x === 0 || !(Math.abs(x) < 2 ** -126);
    const count = inputs.length;
    const kernel = elementwise({
      name: "round",
      count: u32(count),
      bindings: [
        { name: "x", type: "f32", access: "read" },
        { name: "y", type: "u32", access: "write" },
      ],
      body: (i) => [
        let_("value", load("x", i)),
        store("y", i, packBits(stored, local("value", "f32"))),
      ],
    });
    const { y } = await target.run(
      kernel,
      { x: inputs, y: new Uint32Array(count) },
      workgroups(elementwiseGrid(count)),
    );
    const found = Array.from(
      y!,
      (bits, i) => normal(inputs[i]!) ? bits : wanted[i]!,
    );
    t.equal(firstError(found), "none");
  });
}
