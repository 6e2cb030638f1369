// The plan is the executor's only source of work: in an empty folder it computes the bytes of its model, and edits of
// it change the result.
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

/** Sizes of the example, for which a recording has weights. */
const SIZES = { groups: 4, tokens: 16, experts: 8 };
const WEIGHTS = repositoryFile("test/references/fairscale/w4-e8.safetensors");
const MESH = { ep: 4 };

const inputs: Tensors = {
  input: f32(
    [SIZES.groups, SIZES.tokens, 8],
    Array.from({ length: 512 }, (_, i) => Math.sin(i * i)),
  ),
};

/** Reads the layer's tensors from the recording. */
async function layerWeights(): Promise<{ [name: string]: HostTensor }> {
  const weights: { [name: string]: HostTensor } = {};
  for (const [name, entry] of await openSafetensors([fileSource(WEIGHTS)])) {
    if (
      !/^(gate|expert\d+\.fc\d)\.(weight|bias)$|^expert\d+\.fc\d\.(weight|bias)$/
        .test(name)
    ) continue;
    weights[name] = await readTensor(entry);
  }
  return weights;
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

/** Replaces nodes of the plan's kernel trees. */
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

/** Compares `run PLAN` in an empty folder with `run MODEL`. */
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
  // Only the plan is left of the model.
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
    "same bytes through the runtime alone",
  );
}

/** Edits one constant of the plan. */
async function changePlan(t: Test, target: Target): Promise<void> {
  const plan = await compile(fairscale(SIZES), { mesh: MESH });
  const saved = parsePlan(stringifyPlan(plan));
  const wanted = await run(plan, target);
  t.equal(
    await run(saved, target),
    wanted,
    "the saved plan computes the same bytes",
  );

  // Experts compute max(h + b, 0). Changes it to max(h + b, 0.25).
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
    `run PLAN in an empty folder computes the bytes of run MODEL on ${target}`,
    { skip },
    (t) => runInEmptyFolder(t, target),
  );
}

for (const { target, skip } of TARGETS) {
  t.test(
    `a changed constant in the plan changes the result on ${target}`,
    { skip },
    (t) => changePlan(t, target),
  );
}
