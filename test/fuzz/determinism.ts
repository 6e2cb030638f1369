/**
 * Class `determinism`: an equivalent plan computes the bytes of the original plan, in two new processes and in one that
 * ran other plans before.
 */

import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import fc from "fast-check";
import { stringifyPlan } from "../../spec/document/json.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { verifyPlan } from "../../spec/verify/mod.ts";
import { startedProgram } from "../helpers/compiled.ts";
import { smallCheckpoint } from "./checkpoint.ts";
import { DemoPlans, type PlanSource, SOURCES } from "./demo_plans.ts";
import { type Edit, edit, edits } from "./edits.ts";
import type { FreshRuns } from "./fresh_runs.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";
import { type Call, digestOf } from "./runs.ts";

/** A plan and its edits. */
interface Case {
  /** Index of the plan. */
  readonly plan: number;
  readonly edits: readonly Edit[];
}

export interface DeterminismOptions {
  /** Plans per new process, each with its own threads and memory. Default: 50. */
  readonly together?: number;
  readonly sources?: readonly PlanSource[];
}

/** Tunings of matmul tiles and attention tokens: other parameters of the same generators. */
const TUNED: readonly PlanSource[] = [
  { rows: 1, columns: 2, lanes: 8 },
  { rows: 8, columns: 4, lanes: 8 },
  { rows: 3, columns: 2, lanes: 16 },
].map((matmul, i): PlanSource => ({
  name: `inference ep=2, tuned ${i}`,
  kind: "inference",
  options: { mesh: { ep: 2 }, tuning: { matmul, attention: i + 1 } },
}));

/** Inference is more frequent, because training plans have ten times the kernels. */
const OFTEN: readonly PlanSource[] = [...SOURCES, ...TUNED].flatMap((source) =>
  new Array<PlanSource>(source.kind === "inference" ? 10 : 1).fill(source)
);

/** Equivalent edits of plans of a small checkpoint. */
export function determinismClass(
  { together = 50, sources = OFTEN }: DeterminismOptions = {},
): FuzzClass<readonly Case[]> {
  const plans = new DemoPlans(smallCheckpoint);
  const wanted = new Map<PlanSource, string>();
  const changed = async ({ plan, edits }: Case) => {
    const source = sources[plan % sources.length]!;
    const subject = await plans.open(source);
    return { source, subject, plan: edit(subject.plan, edits) };
  };
  return {
    name: "determinism",
    count: 100,
    together,
    cases: fc.array(
      fc.record({ plan: fc.nat(sources.length - 1), edits }),
      { minLength: together, maxLength: together },
    ),
    async judge(cases) {
      const outcomes: string[] = [];
      const legal: {
        name: string;
        calls: readonly Call[];
        plan: Plan;
        digest: string;
      }[] = [];
      for (const one of cases) {
        const { source, subject, plan } = await changed(one);
        const [first] = verifyPlan(plan, { fitsSchema: true });
        if (first) {
          outcomes.push(`refused by ${first.rule}`);
          continue;
        }
        const digest = wanted.get(source) ??
          digestOf(await subject.run(subject.plan));
        wanted.set(source, digest);
        const name = `The plan of ${source.name}, ${
          JSON.stringify(one.edits)
        },`;
        if (digestOf(await subject.run(plan)) !== digest) {
          throw new Finding(`${name} computes other bytes in a warm process`);
        }
        legal.push({
          name,
          calls: subject.calls,
          plan,
          digest,
        });
      }
      // The second process runs each plan after other plans, and on two threads.
      for (
        const [threads, list] of [[1, legal], [2, legal.toReversed()]] as const
      ) {
        const found = await inNewProcess({ threads, plans: list });
        for (const [i, { name, digest }] of list.entries()) {
          if (found[i] === digest) continue;
          throw new Finding(
            `${name} computes other bytes in a new process, on ${threads} threads`,
          );
        }
      }
      return [...outcomes, ...legal.map(() => "legal and the same bytes")];
    },
    evidence: async (cases) =>
      Object.fromEntries(
        await Promise.all(cases.map(async (one, i) => [
          `${i}.plan.json`,
          stringifyPlan((await changed(one)).plan),
        ])),
      ),
    close: () => plans.close(),
  };
}

/** Runs plans in a new process. Returns their digests. */
async function inNewProcess(runs: FreshRuns): Promise<string[]> {
  if (runs.plans.length === 0) return [];
  const folder = await mkdtemp(path.join(tmpdir(), "switchyard-fuzz-"));
  try {
    const file = path.join(folder, "plans.json");
    await writeFile(file, JSON.stringify(runs));
    const { stdout } = await promisify(execFile)(process.execPath, [
      // Most allocations of a run are short-lived.
      "--max-semi-space-size=64",
      ...startedProgram("test/fuzz/fresh_runs.ts"),
      file,
    ]);
    return stdout.trim().split("\n");
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
