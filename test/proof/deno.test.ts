// A saved plan under Deno's own GPU object, another implementation of WebGPU: the recorded logits, router choices and tokens.
// needs: gpu
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import {
  type HostTensor,
  openSafetensors,
  readTensor,
  writeSafetensors,
} from "../../runtime/mod.ts";
import { stringifyPlan } from "../../spec/mod.ts";
import { gpuIsSoftware, skipWithoutGpu } from "../helpers/needs.ts";
import { readTensors } from "../helpers/read_tensors.ts";
import {
  compileCheckpoint,
  fileSource,
  folderOf,
  i32,
  repositoryFile,
  type Tensors,
} from "../helpers/sessions.ts";

const TOLERANCE = 1e-4;
const STEPS = 8;
const NO_ADAPTER = 3;

type Recorded = ReturnType<typeof readTensors>;

/** Prompt 0, then one recorded token after the other: what greedy decoding would run. */
function stepsOf(recorded: Recorded): Tensors {
  const prompt = recorded["p0.input_ids"]!;
  const steps = [prompt, ...recorded["p0.generated"]!.map((id) => [id])];
  const inputs: { [name: string]: HostTensor } = {};
  let position = 0;
  for (const [i, ids] of steps.slice(0, STEPS).entries()) {
    inputs[`${i}/ids`] = i32(ids);
    inputs[`${i}/sequence`] = i32(ids.map(() => 0));
    inputs[`${i}/position`] = i32(ids.map((_, j) => position + j));
    position += ids.length;
  }
  return inputs;
}

/** Run a plan in another process, under Deno; undefined where it finds no adapter. */
function runUnderDeno(
  folder: string,
  files: { readonly plan: string; readonly weights: string },
): string | undefined {
  const { status, stdout, stderr } = spawnSync(
    repositoryFile("node_modules/.bin/deno"),
    [
      ...["run", "-A", "--no-check"],
      repositoryFile("test/fixtures/deno/run_plan.ts"),
      files.plan,
      files.weights,
      join(folder, "inputs"),
      join(folder, "outputs"),
    ],
    { encoding: "utf8" },
  );
  if (status === NO_ADAPTER) return undefined;
  if (status !== 0) throw new Error(`Deno ended with ${status}: ${stderr}`);
  return stdout.trim();
}

function compare(t: Test, outputs: Tensors, recorded: Recorded): void {
  const { data } = outputs["0/logits"]!;
  const wanted = recorded["p0.logits"]!;
  const largest = Math.max(...wanted.map(Math.abs));
  const worst = Math.max(...wanted.map((w, i) => Math.abs(w - data[i]!)));
  t.equal(data.length, wanted.length);
  t.ok(worst <= TOLERANCE * largest, `logits: ${worst / largest}`);
  let routings = 0;
  for (const [name, { data }] of Object.entries(outputs)) {
    const layer = /^0\/(layer\d+\.topk_idx)$/.exec(name)?.[1];
    const choices = recorded[`p0.${layer}`];
    if (!choices) continue;
    routings++;
    t.strictSame([...data], choices, `choices of ${layer}`);
  }
  t.ok(routings > 0, "router choices were compared");
  const generated = Array.from({ length: STEPS }, (_, step) => {
    const { data, shape } = outputs[`${step}/logits`]!;
    const row = [...data.slice(-shape[1]!)];
    return row.indexOf(Math.max(...row));
  });
  t.strictSame(
    generated,
    recorded["p0.generated"]!.slice(0, STEPS),
    "greedy tokens",
  );
}

for (const name of ["mixtral-6e", "demo-lm"]) {
  // The parts that are compared are the same; a software GPU compiles the kernels of each for a minute.
  const skip = skipWithoutGpu ||
    (gpuIsSoftware && name === "demo-lm"
      ? "on a software GPU, mixtral-6e stands for it"
      : false);
  t.test(`${name} on four ranks`, { skip }, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), "switchyard-deno-"));
    t.teardown(() => rmSync(folder, { recursive: true }));
    const recorded = readTensors(`${name}/reference.safetensors`);
    const plan = join(folder, "plan.json");
    writeFileSync(
      plan,
      stringifyPlan(await compileCheckpoint(name, { mesh: { ep: 4 } })),
    );
    writeFileSync(
      join(folder, "inputs"),
      writeSafetensors(stepsOf(recorded)),
    );
    const weights = repositoryFile(`${folderOf(name)}/model.safetensors`);
    const adapter = runUnderDeno(folder, { plan, weights });
    if (adapter === undefined) {
      t.pass("not compared", { skip: "Deno finds no adapter" });
      return;
    }
    t.comment(`on ${adapter}`);
    const found = await openSafetensors([fileSource(join(folder, "outputs"))]);
    const outputs: { [output: string]: HostTensor } = {};
    for (const [name, entry] of found) outputs[name] = await readTensor(entry);
    compare(t, outputs, recorded);
  });
}
