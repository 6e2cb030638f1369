/** Edge cases of routing: one expert; one token or none; all tokens to one expert; all experts per token; long rows. */
// needs: cpu, gpu

import t from "tap";
import {
  add,
  combine,
  type CompileOptions,
  dispatch,
  dot,
  type Model,
  model,
  route,
  upTo,
} from "../compiler/mod.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { devicesInTurn } from "./helpers/needs.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  matches,
  othersInTurn,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

const MESHES: readonly CompileOptions[] = [
  {},
  { mesh: { ep: 2 } },
  { mesh: { ep: 4 } },
];

interface Sizes {
  readonly tokens: number;
  readonly experts: number;
  readonly topK: number;
}

/** A layer with router logits as input. */
function layer({ tokens, experts, topK }: Sizes): Model {
  return model(
    { token: upTo(tokens), embed: 4, ffn: 5, expert: experts },
    (m) => {
      const x = m.input("x", "token embed");
      const routing = route(m.input("logits", "token expert"), {
        over: "expert",
        topK,
        preset: "mixtral",
      });
      const up = m.param("experts.{expert}.up", "expert ffn embed");
      const down = m.param("experts.{expert}.down", "expert embed ffn");
      const hidden = dot(dispatch(x, routing), up, "embed");
      return {
        y: add(x, combine(dot(hidden, down, "ffn"), routing)),
        index: routing.index,
        weight: routing.weight,
      };
    },
  );
}

/** A case of `layer` with as many tokens as there are logits. */
function edge(sizes: Sizes, logits: readonly number[]): Case {
  const many = logits.length / sizes.experts;
  return { model: layer(sizes), calls: [{ logits, x: waves(4 * many) }] };
}

const EDGES: { readonly [name: string]: Case } = {
  "one expert": edge({ tokens: 7, experts: 1, topK: 1 }, waves(7)),
  "one token": edge({ tokens: 7, experts: 5, topK: 2 }, waves(5)),
  "one token, one expert": edge(
    { tokens: 1, experts: 1, topK: 1 },
    [-3],
  ),
  "no tokens": edge({ tokens: 7, experts: 5, topK: 2 }, []),
  "no tokens for one expert": edge({ tokens: 7, experts: 1, topK: 1 }, []),
  "all tokens to one expert": edge(
    { tokens: 70, experts: 6, topK: 1 },
    Array.from({ length: 420 }, (_, i) => i % 6 === 4 ? 9 : 0),
  ),
  "all tokens to the same two": edge(
    { tokens: 70, experts: 6, topK: 2 },
    Array.from(
      { length: 420 },
      (_, i) => i % 6 === 5 ? 9 : i % 6 === 2 ? 8 : 0,
    ),
  ),
  "every expert for each token": edge(
    { tokens: 9, experts: 6, topK: 6 },
    waves(54),
  ),
  "equal logits: the first experts in order": edge(
    { tokens: 5, experts: 6, topK: 3 },
    new Array<number>(30).fill(0.5),
  ),
};

for (const [name, of] of Object.entries(EDGES)) {
  for (const kind of devicesInTurn(name)) {
    t.test(`${name}, on the ${kind}`, {
      skip: kind === "gpu" && skip,
    }, async (t) => {
      await matches(t, of, kind, MESHES);
      const wanted = digest(await runCase(of, kind));
      for (const options of othersInTurn(MESHES, kind)) {
        const found = digest(await runCase(of, kind, options));
        t.equal(found, wanted, `the same bits, ${JSON.stringify(options)}`);
      }
    });
  }
}

const LONG: Sizes = { tokens: 4096, experts: 256, topK: 8 };
const long = edge(
  LONG,
  // Multiples of a sixteenth, so that there are ties among 256.
  waves(LONG.tokens * LONG.experts).map((v) => Math.round(64 * v) / 16),
);

/** Launches of a plan that read an input. */
function readersOf(plan: Plan, input: string) {
  const [program] = plan.programs;
  const { buffer } = program!.inputs[input]!;
  return program!.steps.flatMap((step) =>
    step.op === "launch" &&
      Object.values(step.bindings).includes(buffer)
      ? [{ step, kernel: plan.kernels[step.kernel]! }]
      : []
  );
}

t.test("256 experts, 8 of them for each of 4,096 tokens: one pass", async (t) => {
  for (const options of MESHES) {
    const plan = await compileCase(long, options);
    // One launch reads the logits, independent of row length.
    const readers = readersOf(plan, "logits");
    t.equal(readers.length, 1, JSON.stringify(options));
  }
});

for (const kind of devicesInTurn("256 experts")) {
  t.test(`256 experts, 8 of them for each of 4,096 tokens, on the ${kind}`, {
    skip: kind === "gpu" && skip,
  }, async (t) => {
    await matches(t, long, kind, MESHES);
  });
}
