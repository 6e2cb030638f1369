/** Verifier rules for data flow: each writer once, and states written before or after reads as declared. */

import t from "tap";
import { compileTraining, dot, map, mean, model } from "../compiler/mod.ts";
import type { Step } from "../spec/plan/plan.ts";
import { formatPlan } from "../spec/text/plan.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { type Draft, steps } from "./helpers/break_plan.ts";
import { goodPlan } from "./helpers/plans.ts";
import { type Mistake, testRefused } from "./helpers/refused.ts";

const decoder = await goodPlan("decoder", { ep: 2 });
const chunked = await goodPlan("layer", { ep: 2 }, 2);
const training = await compileTraining(
  model({ token: 8, embed: 4 }, (m) => {
    const y = dot(m.input("x", "token embed"), m.param("w", "embed"), "embed");
    return { loss: mean(map((v) => v * v, y), "token") };
  }),
  { loss: "loss", optimizer: { kind: "sgd" } },
);

/** Index of the first step that satisfies `is`. */
function find(plan: Draft, is: (step: Step) => boolean): number {
  const index = steps(plan).findIndex((step) => is(step as Step));
  if (index < 0) throw new Error("the plan has no such step");
  return index;
}

const writesValues = (step: Step) =>
  step.op === "launch" &&
  Object.entries(step.bindings).some(([binding, buffer]) =>
    /^y\d/.test(binding) && buffer.endsWith("self_attn.values")
  );
const attends = (step: Step) =>
  step.op === "launch" && step.kernel.startsWith("attention");
const updates = (step: Step) => step.op === "copy" && step.to === "w";
function drop(plan: Draft, is: (step: Step) => boolean): void {
  steps(plan).splice(find(plan, is), 1);
}

function double(plan: Draft, is: (step: Step) => boolean): void {
  const index = find(plan, is);
  steps(plan).splice(index, 0, structuredClone(steps(plan)[index]!));
}

/** Moves a step to another index. */
function move(plan: Draft, from: number, to: number): void {
  const [step] = steps(plan).splice(from, 1);
  steps(plan).splice(to, 0, step!);
}

const CACHES: readonly Mistake[] = [
  [
    "is not written",
    "updates",
    /buffer 'model.layers.0.self_attn.values' in program 'main': no step writes it on rank 0/,
    (plan) => drop(plan, writesValues),
  ],
  [
    "is written after the attention that reads it",
    "updates",
    /read buffer 'model.layers.0.self_attn.values' in main\[\d+\].*: the program writes it before reads, and has not yet on rank 0/,
    (plan) => move(plan, find(plan, writesValues), find(plan, attends)),
  ],
  [
    "is written twice",
    "updates",
    /write buffer 'model.layers.0.self_attn.values' in main\[(\d+)\].*: main\[\d+\] has written it on rank 0/,
    (plan) => double(plan, writesValues),
  ],
  [
    "is not written on a rank",
    "updates",
    /buffer 'model.layers.0.self_attn.values' in program 'main': no step writes it on rank 1/,
    (plan) => {
      steps(plan)[find(plan, writesValues)]!.ranks = { ep: [0] };
    },
  ],
  [
    "is written without a declaration",
    "updates",
    /it does not say that program 'main' does/,
    (plan) => {
      Reflect.deleteProperty(
        plan.buffers["model.layers.0.self_attn.values"]!,
        "written",
      );
    },
  ],
  [
    "is written by an unknown program",
    "updates",
    /the plan has no such program/,
    (plan) => {
      plan.buffers["model.layers.0.self_attn.values"]!.written!["other"] =
        "after reads";
    },
  ],
];
testRefused(decoder, CACHES, (name) => `a cache that ${name} is rejected`);

const WEIGHTS: readonly Mistake[] = [
  [
    "is not updated",
    "updates",
    /buffer 'w' in program 'main': no step writes it on rank 0/,
    (plan) => drop(plan, updates),
  ],
  [
    "is updated before it is read",
    "updates",
    /read buffer 'w' in main\[\d+\].*: the program writes it after reads, and main\[0\] has/,
    (plan) => move(plan, find(plan, updates), 0),
  ],
  [
    "is updated twice",
    "updates",
    /write buffer 'w' in main\[\d+\].*: main\[\d+\] has written it/,
    (plan) => double(plan, updates),
  ],
];
testRefused(training, WEIGHTS, (name) => `a weight that ${name} is rejected`);

const SCRATCH: readonly Mistake[] = [
  [
    "one writer less than declared",
    "reads",
    /read buffer 'returned' in main\[\d+\].*: 2 of its 3 writers have written it on rank 0/,
    (plan) => {
      plan.buffers["returned"]!.writers = 3;
    },
  ],
  [
    "one writer more than declared",
    "once",
    /write buffer 'returned' in main\[\d+\].*: main\[\d+\] has written it on rank 0/,
    (plan) => {
      Reflect.deleteProperty(plan.buffers["returned"]!, "writers");
    },
  ],
  [
    "a writer that runs twice instead of another",
    "once",
    /write buffer 'y' in main\[\d+\].*: main\[\d+\] is the same step/,
    (plan) => {
      steps(plan).push(structuredClone(steps(plan).at(-1)!));
      plan.buffers["y"]!.writers = 2;
    },
  ],
  [
    "an undeclared second writer",
    "once",
    /write buffer 'y'.*: main\[\d+\] has written it on rank 0/,
    (plan) => steps(plan).push(structuredClone(steps(plan).at(-1)!)),
  ],
  [
    "a writer count on an input",
    "once",
    /count the writers of buffer 'x': it is of kind 'input'/,
    (plan) => {
      plan.buffers["x"]!.writers = 2;
    },
  ],
  [
    "program writes of a buffer that is not persistent",
    "updates",
    /let programs write buffer 'y': it is of kind 'output'/,
    (plan) => {
      plan.buffers["y"]!.written = { main: "after reads" };
    },
  ],
];
testRefused(chunked, SCRATCH, (name) => `buffers with ${name} are rejected`);

t.test("plans and their text state writes", (t) => {
  for (const plan of [decoder, chunked, training]) {
    t.same(verifyPlan(plan), []);
  }
  t.match(
    formatPlan(decoder),
    /model.layers.0.self_attn.values +state .* always, main writes it before reads\n/,
  );
  t.match(
    formatPlan(training),
    /w +weight .* always, main writes it after reads\n/,
  );
  t.match(formatPlan(chunked), /returned +scratch .*, 2 writers\n/);
  t.end();
});
