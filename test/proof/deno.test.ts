// Saved plans in Deno with wgpu, a second implementation of WebGPU, compute the recorded logits, router choices and
// tokens.
// needs: gpu
// rotates with: spec/kernel/wgsl, runtime/gpu
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
import { TUNING } from "../../engine/tune/tuning.ts";
import { stringifyPlan } from "../../spec/mod.ts";
import { gpuIsSoftware, skipWithoutGpu } from "../helpers/needs.ts";
import { readTensors } from "../helpers/read_tensors.ts";
import { isInTurn, repeatWith } from "../helpers/seed.ts";
import {
  compileCheckpoint,
  fileSource,
  i32,
  repositoryFile,
  type Tensors,
  weightFiles,
} from "../helpers/sessions.ts";

const TOLERANCE = 1e-4;
const STEPS = 8;
const NO_ADAPTER = 3;

type Recorded = ReturnType<typeof readTensors>;

/** Prompt 0, then one recorded token per step, as in greedy decoding. */
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

/** Runs a plan in Deno, in another process. Undefined: it finds no adapter. */
function runUnderDeno(
  folder: string,
  files: { readonly plan: string; readonly weights: readonly string[] },
): string | undefined {
  const { status, stdout, stderr } = spawnSync(
    repositoryFile("node_modules/.bin/deno"),
    [
      ...["run", "-A", "--no-check"],
      repositoryFile("test/fixtures/deno/run_plan.ts"),
      files.plan,
      join(folder, "inputs"),
      join(folder, "outputs"),
      ...files.weights,
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

/** Recorded checkpoints: one per family, except for other dtypes. */
const CHECKPOINTS = [
  "deepseekv2-16e",
  "deepseekv2-lite-8e",
  "deepseekv3-16e",
  "gptoss-8e",
  "glm4moe-16e",
  "granitemoe-8e",
  "llama4-8e",
  "mixtral-6e",
  "mixtral-8e",
  "olmoe-16e",
  "qwen2moe-8e",
  "qwen3moe-16e",
  "qwen3moe-8e-bf16",
];

/**
 * Kernels for narrow and wide devices. The context is long enough for attention split over keys. A software GPU runs
 * one checkpoint with one of them, by `SEED`.
 */
const PLANS = {
  "one rank, wide kernels": {
    mesh: { ep: 1 },
    tuning: TUNING.gpu,
    limits: { maxStorageBuffersPerShaderStage: 16 },
    maxContext: 256,
  },
  "two ranks": { mesh: { ep: 2 } },
};

for (const [i, name] of CHECKPOINTS.entries()) {
  const all = Object.entries(PLANS);
  const plans = all.filter((_, at) =>
    !gpuIsSoftware ||
    isInTurn(all.length * i + at, all.length * CHECKPOINTS.length)
  );
  if (plans.length === 0) continue;
  t.test(`${name} with wgpu`, { skip: skipWithoutGpu }, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), "switchyard-deno-"));
    t.teardown(() => rmSync(folder, { recursive: true }));
    const recorded = readTensors(`${name}/reference.safetensors`);
    const plan = join(folder, "plan.json");
    writeFileSync(
      join(folder, "inputs"),
      writeSafetensors(stepsOf(recorded)),
    );
    const weights = weightFiles(name).map(repositoryFile);
    for (const [title, options] of plans) {
      writeFileSync(
        plan,
        stringifyPlan(await compileCheckpoint(name, options)),
      );
      const adapter = runUnderDeno(folder, { plan, weights });
      if (adapter === undefined) {
        t.pass("not compared", { skip: "Deno finds no adapter" });
        return;
      }
      t.comment(`${title}, on ${adapter} (${repeatWith()})`);
      const found = await openSafetensors([
        fileSource(join(folder, "outputs")),
      ]);
      const outputs: { [output: string]: HostTensor } = {};
      for (const [name, entry] of found) {
        outputs[name] = await readTensor(entry);
      }
      compare(t, outputs, recorded);
    }
  });
}
