/** Repeated parts of a plan are written once: lists are restored exactly, and a longer model needs no more text. */

import process from "node:process";
import { isDeepStrictEqual } from "node:util";
import { Ajv } from "ajv";
import fc from "fast-check";
import t from "tap";
import { compile } from "../compiler/mod.ts";
import { withSourceNames } from "../compiler/source_names.ts";
import { findRepeats } from "../spec/document/find_repeats.ts";
import {
  formatPlan,
  parsePlan,
  planSchema,
  type Step,
  stringifyPlan,
  verifyPlanText,
} from "../spec/mod.ts";
import { expandRepeats, isRepeat, type Json } from "../spec/document/repeat.ts";
import { smallDecoder } from "./helpers/plans.ts";

/** Items of layers, with exact and almost exact repetition. */
const ITEM = fc.record({
  name: fc.constantFrom(
    ...["layers.#.norm", "dot.#", "a", "layers.7.b", "{layer}", "x#y0#", "0#"],
  ),
  text: fc.constantFrom("1.5", "{expert}", "=layer", "007", ""),
  value: fc.constantFrom<Json>(0, -0.5, 1e300, null, true, [1, [2]]),
  step: fc.integer({ min: -3, max: 9 }),
  varies: fc.constantFrom("no", "even", "any"),
});

t.test("expandRepeats() inverts findRepeats()", (t) => {
  let folded = 0;
  fc.assert(
    fc.property(
      fc.array(ITEM, { minLength: 1, maxLength: 6 }),
      fc.array(fc.nat(3), { maxLength: 4 }),
      fc.integer({ min: 1, max: 9 }),
      (items, around, layers) => {
        const list: Json[] = [...around];
        for (let layer = 0; layer < layers; layer++) {
          for (const { name, text, value, step, varies } of items) {
            const number = Math.max(0, 30 + step * layer);
            const other = varies === "no"
              ? 4
              : varies === "even"
              ? step * layer
              : (layer * 7919) % 13;
            list.push({
              name: name.replaceAll("#", `${number}`),
              text,
              value,
              other,
            });
          }
        }
        list.push(...around);
        const found = findRepeats(list);
        if (found.some(isRepeat)) folded++;
        t.same(expandRepeats(found as readonly Json[], "items"), list);
      },
    ),
    { numRuns: 300, seed: 11 },
  );
  t.ok(folded > 40, `${folded} of 300 had repeats`);
  t.end();
});

t.test("numbers in a repeated part are expressions of the layer", (t) => {
  const list = [3, 4, 5, 6].flatMap((layer) => [
    { name: `layers.${layer}.norm`, allocation: 20 * layer + 2 },
    { name: `layers.${layer}.dot`, from: `layers.${layer - 1}.add`, bytes: 64 },
    { name: `layers.${layer}.dot.2`, allocation: [7, 9, 4, 1][layer - 3]! },
  ]);
  t.same(findRepeats(list), [{
    repeat: "layer",
    from: 3,
    to: 6,
    body: [
      { name: "layers.{layer}.norm", allocation: "=20*layer+2" },
      {
        name: "layers.{layer}.dot",
        from: "layers.{layer-1}.add",
        bytes: 64,
      },
      { name: "layers.{layer}.dot.2", allocation: { each: [7, 9, 4, 1] } },
    ],
  }]);
  t.end();
});

/** Compiles a decoder with the given number of layers. */
async function decoderPlan(layers: number) {
  return await compile(smallDecoder(layers, 4), {
    mesh: { ep: 2 },
  });
}

t.test("a plan is read as written, and more layers need no more text", async (t) => {
  const sizes: number[] = [];
  const lines: number[] = [];
  for (const layers of [1, 3, 6, 10]) {
    const plan = await decoderPlan(layers);
    const text = stringifyPlan(plan);
    t.ok(isDeepStrictEqual(parsePlan(text), plan), `${layers} layers`);
    t.equal(stringifyPlan(parsePlan(text)), text);
    const document = JSON.parse(text) as object;
    const ajv = new Ajv({
      discriminator: true,
      strictNumbers: false,
      allowUnionTypes: true,
      strictTuples: false,
      meta: false,
      validateSchema: false,
    });
    t.ok(ajv.validate(planSchema, document), ajv.errorsText());
    sizes.push(text.length);
    lines.push(formatPlan(plan).split("\n").length);
  }
  const [, , six, ten] = sizes;
  t.ok(ten! < 1.01 * six!, `${sizes} bytes`);
  t.equal(lines[3], lines[2], `${lines} lines`);
});

t.test("a plan with too many repeats, or with duplicate names, is rejected", async (t) => {
  const document = JSON.parse(stringifyPlan(await decoderPlan(4))) as {
    buffers: { repeat?: string; to: number; body: unknown[]; name: string }[];
    programs: { steps: { repeat?: string; to: number; from: number }[] }[];
  };
  const refused = (message: RegExp) =>
    t.match(verifyPlanText(JSON.stringify(document)).errors[0], {
      rule: "schema",
      message,
    });
  const layers = document.buffers.find(({ repeat }) => repeat !== undefined)!;
  const { to } = layers;
  for (const many of [1e6, Number.MAX_SAFE_INTEGER]) {
    layers.to = many;
    refused(/buffers, and 262144 are allowed/);
  }
  layers.to = 1.5;
  refused(/one of its buffers has no name/);
  layers.to = to;
  const first = document.buffers.find(({ repeat }) => repeat === undefined)!;
  document.buffers.push(first);
  refused(/two buffers are named/);
  document.buffers.pop();
  t.same(verifyPlanText(JSON.stringify(document)).errors, []);
  // One layer too few.
  document.programs[0]!.steps.find(({ repeat }) => repeat)!.from++;
  t.not(verifyPlanText(JSON.stringify(document)).errors.length, 0);
});

t.test("a plan does not contain paths of its sources", async (t) => {
  const plan = await decoderPlan(2);
  t.notOk(stringifyPlan(plan).includes(process.cwd()));
  const files = plan.programs[0]!.steps.flatMap(({ span }) =>
    span ? [span.file] : []
  );
  t.ok(files.length > 0);
  t.ok(files.every((file) => /^models\/\w+\.ts$/.test(file)), files.join());
  const at = (file: string): Step => ({
    op: "copy",
    ranks: "all",
    from: "a",
    to: "b",
    bytes: 4,
    span: { file, line: 1, column: 2 },
  });
  const steps = ["/home/me/moe/layer.ts", "/home/me/moe/lib/glu.ts"].map(at);
  t.same(
    withSourceNames(steps).map(({ span }) => span?.file),
    ["layer.ts", "lib/glu.ts"],
  );
});
