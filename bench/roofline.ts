/**
 * The fraction of the adapter's roofline that each kernel reaches. Multiply-adds and bytes are counted in the kernels'
 * trees; times are measured by the adapter. The works are the expert FFN of 512 tokens, and of the bundled checkpoint
 * prefill of 256 tokens and a decode step of 4 sequences. Flags: `--adapter NUMBER` (default 0), `--runs N`, `--out
 * FILE`.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { nodeFiles } from "../cli/files.ts";
import { loadTarget, openTarget, type Target } from "../engine/mod.ts";
import {
  launchContext,
  openLaunchMeter,
} from "../engine/planner/simulate/launches.ts";
import type { Workload } from "../engine/planner/simulate/mod.ts";
import {
  createGpuDevice,
  type HostTensor,
  openGpu,
  Tracer,
} from "../runtime/mod.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { machine, median } from "./measure.ts";
import { expertLayer } from "./models.ts";
import { DEMO_FOLDER } from "./peers/demo.ts";
import { layerTensors, randomWeights } from "./peers/layer.ts";
import { writeResult } from "./results.ts";
import { measureRoof, type Roof } from "./roof.ts";
import { randomValues } from "./session.ts";
import { packed, PROMPT } from "./work.ts";
import { withoutRows } from "../runtime/outputs.ts";

const { values: flags } = parseArgs({
  options: {
    adapter: { type: "string", default: "0" },
    runs: { type: "string", default: "9" },
    out: { type: "string" },
  },
});
const runs = Number(flags.runs);

/** The work of a kernel's launches in one step. */
interface KernelWork {
  launches: number;
  multiplyAdds: number;
  /** For each binding, at most the size of its buffer. */
  bytes: number;
}

/** A measured kernel in a step. */
interface Reached extends KernelWork {
  readonly kernel: string;
  readonly ms: number;
  /** Fraction of the roofline. */
  readonly fraction: number;
  readonly bound: "multiply-adds" | "bytes";
}

/** A measured step. */
interface Work {
  readonly name: string;
  readonly target: Target;
  readonly weights?: string;
  readonly workload: Workload;
  readonly inputs: (plan: Plan) => { readonly [name: string]: HostTensor };
}

function countKernels(plan: Plan, workload: Workload) {
  const context = launchContext(plan, workload);
  const meter = openLaunchMeter(context);
  const kernels = new Map<string, KernelWork>();
  for (const step of context.program.steps) {
    if (step.op !== "launch") continue;
    const counted = meter.launch(step, { rank: 0, fullness: "max" });
    if (counted === undefined) continue;
    const all = kernels.get(step.kernel) ??
      { launches: 0, multiplyAdds: 0, bytes: 0 };
    kernels.set(step.kernel, all);
    all.launches++;
    all.multiplyAdds += counted.work.multiplyAdds;
    all.bytes += counted.bytes;
  }
  return kernels;
}

async function measureWork(work: Work, roof: Roof): Promise<Reached[]> {
  const tracer = new Tracer(() => performance.now());
  const opened = await openTarget(work.target, nodeFiles(), {
    sharing: "shared",
    adapter: [Number(flags.adapter)],
    timestamps: true,
    tracer,
    ...work.weights === undefined ? {} : { weights: work.weights },
    bounds: { maxTokens: 256, maxSequences: 4, maxContext: 256 },
  });
  const { plan, session } = opened;
  const inputs = work.inputs(plan);
  const perRun: Map<string, number>[] = [];
  for (let run = -2; run < runs; run++) {
    session.reset();
    const before = tracer.toTrace().traceEvents.length;
    await session.run("main", inputs, withoutRows(plan.programs[0]!));
    if (run < 0) continue;
    const times = new Map<string, number>();
    for (const event of tracer.toTrace().traceEvents.slice(before)) {
      const kernel = event.args["kernel"];
      if (typeof kernel !== "string") continue;
      times.set(kernel, (times.get(kernel) ?? 0) + (event.dur ?? 0) / 1000);
    }
    perRun.push(times);
  }
  await opened.close();
  const reached: Reached[] = [];
  for (const [kernel, counted] of countKernels(plan, work.workload)) {
    const times = perRun.flatMap((run) => run.get(kernel) ?? []);
    if (times.length === 0) continue;
    const ms = median(times);
    const arithmetic = counted.multiplyAdds / roof.multiplyAdds * 1000;
    const memory = counted.bytes / roof.bandwidth * 1000;
    reached.push({
      kernel,
      ...counted,
      ms,
      fraction: Math.max(arithmetic, memory) / ms,
      bound: arithmetic > memory ? "multiply-adds" : "bytes",
    });
  }
  return reached.sort((a, b) => b.ms - a.ms);
}

const folder = mkdtempSync(join(tmpdir(), "switchyard-roofline-"));
try {
  const adapter = await openGpu(Number(flags.adapter));
  const device = await createGpuDevice(adapter);
  const roof = await measureRoof(device, runs);
  device.destroy();
  const weights = join(folder, "layer.safetensors");
  writeFileSync(weights, layerTensors(randomWeights()));
  const demo = await loadTarget(fileURLToPath(DEMO_FOLDER), nodeFiles());
  const works: Work[] = [{
    name: "expert FFN, 512 tokens",
    target: { kind: "model", model: expertLayer(512) },
    weights,
    workload: { tokens: 512 },
    inputs: () => ({
      x: { dtype: "f32", shape: [512, 512], data: randomValues(512 * 512) },
    }),
  }, {
    name: "prefill, 256 tokens of 4 sequences, bundled checkpoint",
    target: demo,
    workload: { tokens: 256, sequences: 4 },
    inputs: () => packed(PROMPT),
  }, {
    name: "decode, 4 sequences, bundled checkpoint",
    target: demo,
    workload: { tokens: 4, sequences: 4 },
    inputs: () => packed({ ...PROMPT, length: 1 }),
  }];
  const lines = [
    "# roofline",
    "",
    `${machine()}, ${adapter.name}: copies ${
      (roof.bandwidth / 1e9).toFixed(1)
    } GB/s, multiply-adds ${(2 * roof.multiplyAdds / 1e9).toFixed(1)} GFLOP/s`,
  ];
  const ratios: { [name: string]: number } = {};
  const all: { [work: string]: readonly Reached[] } = {};
  for (const work of works) {
    const kernels = all[work.name] = await measureWork(work, roof);
    const total = kernels.reduce((sum, { ms }) => sum + ms, 0);
    lines.push(
      "",
      `## ${work.name}: ${total.toFixed(2)} ms in kernels`,
      "",
      "| kernel | launches | ms | GFLOP/s | GB/s | of the roof | bound by |",
      "| --- | --- | --- | --- | --- | --- | --- |",
    );
    for (const of of kernels) {
      const rate = (amount: number) => (amount / of.ms / 1e6).toFixed(1);
      lines.push(
        `| ${
          [
            of.kernel,
            of.launches,
            of.ms.toFixed(3),
            rate(2 * of.multiplyAdds),
            rate(of.bytes),
            `${(100 * of.fraction).toFixed(0)} %`,
            of.bound,
          ].join(" | ")
        } |`,
      );
      if (of.ms > 0.2 * total) {
        ratios[`${work.name}: ${of.kernel}, of the roof`] = Number(
          of.fraction.toPrecision(3),
        );
      }
    }
  }
  const table = lines.join("\n") + "\n";
  console.log(table);
  const result = {
    program: "roofline",
    machine: machine(),
    adapter: adapter.name,
    roof,
    workloads: all,
    ratios,
  };
  if (flags.out !== undefined) writeResult(flags.out, result, table);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
