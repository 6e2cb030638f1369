// The plan is the executor's only source of work: in an empty folder it gives the bytes that its model gives, and what it says is what is done.
// needs: cpu, gpu
import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { isDeepStrictEqual } from "node:util";
import t, { type Test } from "tap";
import { compile } from "../../compiler/mod.ts";
import { fairscale } from "../../examples/fairscale.ts";
import {
  type HostTensor,
  openSafetensors,
  readTensor,
  writeSafetensors,
} from "../../runtime/mod.ts";
import {
  parsePlan,
  type Plan,
  type PlanKernel,
  stringifyPlan,
} from "../../spec/mod.ts";
import {
  bytesOf,
  f32,
  fileSource,
  openSession,
  repositoryFile,
  type Target,
  TARGETS,
  type Tensors,
} from "../helpers/sessions.ts";
import { ableInTurn } from "../helpers/seed.ts";

/** The example's sizes; a recording has weights for them. */
const SIZES = { groups: 4, tokens: 16, experts: 8 };
const WEIGHTS = repositoryFile("test/references/fairscale/w4-e8.safetensors");
const MESH = { ep: 4 };

const inputs: Tensors = {
  input: f32(
    [SIZES.groups, SIZES.tokens, 8],
    Array.from({ length: 512 }, (_, i) => Math.sin(i * i)),
  ),
};

/** The layer's own tensors: the recording has others beside them. */
async function layerWeights(): Promise<{ [name: string]: HostTensor }> {
  const kept: { [name: string]: HostTensor } = {};
  for (const [name, entry] of await openSafetensors([fileSource(WEIGHTS)])) {
    if (
      !/^(gate|expert\d+\.fc\d)\.(weight|bias)$|^expert\d+\.fc\d\.(weight|bias)$/
        .test(name)
    ) continue;
    kept[name] = await readTensor(entry);
  }
  return kept;
}

async function run(plan: Plan, target: Target): Promise<string> {
  const tensors = await openSafetensors([fileSource(WEIGHTS)]);
  const session = await openSession(plan, { target, tensors });
  try {
    return bytesOf(await session.run("main", inputs));
  } finally {
    session.close();
  }
}

/** Replace nodes of the plan's kernels; the print follows the tree. */
function editKernels(
  plan: Plan,
  edit: (node: { readonly [field: string]: unknown } | null) => unknown,
): Plan {
  const kernels: { [name: string]: PlanKernel } = {};
  for (const [name, { tree }] of Object.entries(plan.kernels)) {
    const edited: typeof tree = JSON.parse(
      JSON.stringify(tree),
      (_, value) => edit(value),
    );
    kernels[name] = { tree: edited };
  }
  return { ...plan, kernels };
}

/** `run PLAN` in a folder that has nothing else against `run MODEL`. */
async function runInEmptyFolder(
  t: Test,
  target: Target,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "switchyard-plan-"));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const empty = join(folder, "empty");
  mkdirSync(empty);
  const model = join(folder, "model.ts");
  copyFileSync(repositoryFile("examples/fairscale.ts"), model);
  writeFileSync(join(folder, "inputs"), writeSafetensors(inputs));
  writeFileSync(
    join(folder, "weights"),
    writeSafetensors(await layerWeights()),
  );
  const switchyard = (cwd: string, ...argv: string[]) => {
    const bin = repositoryFile("bin/switchyard.mjs");
    execFileSync(process.execPath, [bin, ...argv], { cwd, stdio: "pipe" });
  };
  const files = (outputs: string) => [
    ...["--inputs", "../inputs", "--weights", "../weights"],
    ...["--outputs", outputs, "--adapter", target === "gpu" ? "0" : "cpu"],
  ];
  switchyard(folder, "plan", "model.ts", "--mesh", "ep=4", "--out", "plan");
  mkdirSync(join(folder, "beside"));
  switchyard(
    join(folder, "beside"),
    ...["run", "../model.ts", "--mesh", "ep=4", ...files("../by-model")],
  );
  // Nothing of the model is left but its plan.
  rmSync(model);
  copyFileSync(join(folder, "plan"), join(empty, "plan.json"));
  switchyard(empty, "run", "plan.json", ...files("../by-plan"));
  t.strictSame(readdirSync(empty), ["plan.json"]);
  const [byModel, byPlan] = ["by-model", "by-plan"].map((name) =>
    readFileSync(join(folder, name))
  );
  t.ok(byModel!.length > 0 && byModel!.equals(byPlan!), "same bytes");
  t.equal(
    byPlan!.toString("base64"),
    await run(parsePlan(readFileSync(join(folder, "plan"), "utf8")), target),
    "and through the runtime alone",
  );
}

/** Edit the plan and nothing else. */
async function changePlan(t: Test, target: Target): Promise<void> {
  const plan = await compile(fairscale(SIZES), { mesh: MESH });
  const saved = parsePlan(stringifyPlan(plan));
  const wanted = await run(plan, target);
  t.equal(await run(saved, target), wanted, "the saved plan is the plan");

  // Experts compute max(h + b, 0): let the plan say max(h + b, 0.25).
  let changed = 0;
  const floor = { op: "const", type: "f32", value: 0 };
  const edited = editKernels(saved, (node) => {
    if (node?.["fn"] !== "max" || !isDeepStrictEqual(node["b"], floor)) {
      return node;
    }
    changed++;
    return { ...node, b: { ...floor, value: 0.25 } };
  });
  t.ok(changed > 0, "the constant is found");
  t.not(await run(edited, target), wanted, "other bytes");
}

for (const { target, skip } of ableInTurn(TARGETS)) {
  t.test(
    `run PLAN in an empty folder gives the bytes of run MODEL on ${target}`,
    { skip },
    (t) => runInEmptyFolder(t, target),
  );
}

for (const { target, skip } of TARGETS) {
  t.test(
    `a changed constant in the plan changes what is computed on ${target}`,
    { skip },
    (t) => changePlan(t, target),
  );
}
