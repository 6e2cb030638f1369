/** Short runs of the classes of `npm run fuzz`, a third of them per run, with a new seed each time. */
// needs: cpu

import t from "tap";
import { smallCheckpoint } from "./fuzz/checkpoint.ts";
import { CLASSES } from "./fuzz/classes.ts";
import { SOURCES } from "./fuzz/demo_plans.ts";
import { determinismClass } from "./fuzz/determinism.ts";
import { fuzz, type FuzzClass, reportText } from "./fuzz/fuzz.ts";
import { kernelClass } from "./fuzz/kernel.ts";
import { lengthsClass } from "./fuzz/lengths.ts";
import { planClass } from "./fuzz/plan.ts";
import { inTurn, repeatWith, RUNS, SEED } from "./helpers/seed.ts";

const SOURCE_NAMES: readonly string[] = [
  "inference ep=2",
  "inference ep=2 in chunks",
  "inference dp=2,ep=2",
  "training ep=2",
];

/** Classes with smaller cases than `npm run fuzz`, and their numbers of cases. */
const SHORT: {
  readonly [name: string]: {
    readonly make: () => FuzzClass<unknown>;
    readonly count: number;
  };
} = {
  kernel: {
    make: () => kernelClass() as FuzzClass<unknown>,
    count: 150,
  },
  "kernel-native": { make: CLASSES["kernel-native"]!, count: 4 },
  "kernel-gpu": { make: CLASSES["kernel-gpu"]!, count: 4 },
  "kernel-wgpu": { make: CLASSES["kernel-wgpu"]!, count: 1 },
  products: { make: CLASSES["products"]!, count: 5 },
  "products-native": { make: CLASSES["products-native"]!, count: 1 },
  "products-gpu": { make: CLASSES["products-gpu"]!, count: 1 },
  "products-wgpu": { make: CLASSES["products-wgpu"]!, count: 1 },
  plan: {
    make: () =>
      planClass({
        read: smallCheckpoint,
        sources: SOURCES.filter(({ name }) => SOURCE_NAMES.includes(name)),
      }) as FuzzClass<unknown>,
    count: 12,
  },
  determinism: {
    make: () =>
      determinismClass({
        together: 3,
        sources: SOURCES.filter(({ name }) => SOURCE_NAMES.includes(name)),
      }) as FuzzClass<unknown>,
    count: 3,
  },
  writes: { make: CLASSES["writes"]!, count: 2 },
  lengths: {
    make: () => lengthsClass({ every: 12 }) as FuzzClass<unknown>,
    count: 1,
  },
  cache: { make: CLASSES["cache"]!, count: 10 },
  large: { make: CLASSES["large"]!, count: 3 },
  disk: { make: CLASSES["disk"]!, count: 2 },
  locks: { make: CLASSES["locks"]!, count: 100 },
  serve: { make: CLASSES["serve"]!, count: 2 },
  model: { make: CLASSES["model"]!, count: 20 },
  safetensors: { make: CLASSES["safetensors"]!, count: 250 },
  gguf: { make: CLASSES["gguf"]!, count: 125 },
  config: { make: CLASSES["config"]!, count: 20 },
  tokenizer: { make: CLASSES["tokenizer"]!, count: 2 },
  template: { make: CLASSES["template"]!, count: 2 },
};

t.same(
  Object.keys(SHORT).sort(),
  Object.keys(CLASSES).sort(),
  "every class has a short run",
);

for (const [name, { make, count: base }] of inTurn(Object.entries(SHORT), 3)) {
  t.test(name, async (t) => {
    const of = make();
    const count = base * RUNS;
    const report = await fuzz(of, { seed: SEED, count, findings: 1 });
    await of.close();
    t.comment(reportText(report));
    t.equal(report.tried, count);
    t.same(report.found, [], repeatWith());
  });
}

t.test("a finding is reduced and counted", async (t) => {
  const of = planClass({ read: smallCheckpoint, sources: SOURCES.slice(0, 1) });
  const report = await fuzz({
    ...of,
    judge: ({ changes: [change] }) =>
      change!.at < 40
        ? Promise.resolve("low")
        : Promise.reject(new Error("high")),
  }, { seed: SEED, count: 100, findings: 2 });
  await of.close();
  t.equal(report.found.length, 2);
  for (const found of report.found) {
    t.match(found.message, /high/);
    t.equal(found.case.changes[0]!.at, 40, "the smallest");
  }
  t.match(reportText(report), /^\d+ tried: .*; 2 findings$/);
});
