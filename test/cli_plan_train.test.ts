// `plan --train`: the training step, its exchanges and its memory.
// rotates with: engine/planner/, compiler/compile_training.ts
import path from "node:path";
import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import {
  compileTraining,
  dot,
  mean,
  model,
  mul,
  sgd,
  train,
} from "../compiler/mod.ts";
import { planTraining } from "../engine/mod.ts";
import { stringifyPlan } from "../spec/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { switchyard } from "./helpers/cli.ts";

const MIXTRAL = checkpointFolder("mixtral-6e");
const MESH = ["--mesh", "dp=2,ep=2", "--max-tokens", "64"];

/** Peak and state bytes of rank 0. */
function memoryOf(text: string): { peak: number; states: number } {
  const row = /^ +0 +0,0 +([\d,]+) +[\d,]+ +([\d,]+)/m.exec(text)!;
  const [peak, states] = row.slice(1).map((n) => Number(n.replaceAll(",", "")));
  return { peak: peak!, states: states! };
}

t.test("a checkpoint's step, with replicated and sharded state", async (t) => {
  const plan = ["plan", MIXTRAL, "--train", "--full", ...MESH];
  const replicated = await switchyard(plan);
  const sharded = await switchyard([...plan, "--zero", "1"]);
  t.strictSame([replicated.code, replicated.err], [0, ""]);
  t.strictSame([sharded.code, sharded.err], [0, ""]);
  const phases = /\n {2}(forward|backward|update)(?=\n)/g;
  t.strictSame(
    [...sharded.out.matchAll(phases)].map(([, phase]) => phase),
    ["forward", "backward", "update"],
  );
  t.match(
    sharded.out,
    /reduce-scatter +main\[\d+\] +reduce +over dp\+ep +\d+ B = \d+ B x 3 others/,
  );
  t.match(
    sharded.out,
    /reduce-scatter +main\[\d+\] +reduce +over dp +\d+ B = \d+ B x 1 others/,
  );
  t.match(sharded.out, /\{unreduced:dp\+ep\}/);
  const [all, part] = [memoryOf(replicated.out), memoryOf(sharded.out)];
  t.ok(part.states < all.states, `${part.states} of ${all.states} bytes`);
  t.ok(part.peak < all.peak, `${part.peak} of ${all.peak} bytes`);
});

t.test("a declared training is planned as it is executed", async (t) => {
  const line = model({ row: 4, input: 2 }, (m) => {
    const y = dot(m.input("x", "row input"), m.param("w", "input"), "input");
    return { miss: mean(mul(y, y), "row") };
  });
  const declared = {
    loss: "miss" as const,
    optimizer: sgd(),
    mesh: { dp: 2 },
    place: { row: "dp" },
  };
  const texts = new Set<string>();
  const own: readonly { clipNorm?: number; accumulate?: number }[] = [
    {},
    { clipNorm: 2 },
    { clipNorm: 2, accumulate: 2 },
  ];
  for (const more of own) {
    const training = train(line, {
      ...declared,
      ...more,
      schedule: { rate: 1 },
      data: () => ({}),
    });
    const { compiledFrom, ...plan } = await planTraining(
      training,
      nodeFiles(),
      {},
    );
    t.ok(compiledFrom);
    const text = stringifyPlan(plan);
    const wanted = await compileTraining(line, {
      ...declared,
      ...more,
      accumulate: "accumulate" in more,
    });
    t.equal(text, stringifyPlan(wanted), JSON.stringify(more));
    texts.add(text);
  }
  t.equal(texts.size, 3, "all texts differ");
});

t.test("device limits", async (t) => {
  const plan = ["plan", MIXTRAL, "--train", ...MESH];
  const limits = ["--limits", "maxBufferSize=1000"];
  const { code, out } = await switchyard([...plan, ...limits]);
  t.equal(code, 3);
  t.match(out, /needs maxBufferSize = \d+, and 1000 is allowed\n {4}fix: /);
});

t.test("flags that require --train", async (t) => {
  const { code, err } = await switchyard(["plan", MIXTRAL, "--clip", "1"]);
  t.equal(code, 2);
  t.match(err, /Cannot use --clip without --train/);
});

t.test("a model without a loss", async (t) => {
  const file = path.join(import.meta.dirname, "../examples/layer.ts");
  const { code, err } = await switchyard(["plan", file, "--train"]);
  t.equal(code, 1);
  t.match(err, /Cannot train by output 'loss': the model has no such output/);
});
