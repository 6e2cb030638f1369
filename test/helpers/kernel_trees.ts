/**
 * Prints the hashes of all kernel trees of many plans, one line per kernel, so that `diff` can compare two versions of
 * the compiler. The second hash ignores names of variables.
 *
 *     node scripts/run.mjs test/helpers/kernel_trees.ts [routers] [checkpoints] > trees.txt
 */

import { createHash } from "node:crypto";
import { readdirSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import {
  type CompileOptions,
  compileTraining,
  type RoutingPreset,
} from "../../compiler/mod.ts";
import { compileGraph } from "../../compiler/compile.ts";
import { trace } from "../../compiler/graph/trace.ts";
import { ROUTING_PRESETS } from "../../compiler/graph/routing/presets.ts";
import { loadTarget, planTarget } from "../../engine/mod.ts";
import type { Config } from "../../models/mod.ts";
import { publishedModel } from "../../models/published.ts";
import type { Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { checkpointFolder, files, meshOf } from "./checkpoints.ts";
import { EXTRAS, routedLayer, ROUTERS } from "./routed_layer.ts";

function hash(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex")
    .slice(0, 12);
}

/** Returns a tree with variables renamed by order of declaration. */
function numbered(kernel: Kernel): unknown {
  let declared = 0;
  type Names = Map<string, string>;
  const declare = (names: Names, name: string) => {
    names.set(name, `v${declared++}`);
    return names.get(name);
  };
  const within = (value: unknown, names: Names): unknown =>
    JSON.parse(
      JSON.stringify(
        value,
        (key, found) => key === "name" ? names.get(found) ?? found : found,
      ),
    );
  const block = (body: readonly Stmt[], outer: Names): unknown[] => {
    const names = new Map(outer);
    return body.map((s) => {
      switch (s.op) {
        case "let":
        case "var": {
          const value = within(s.value, names);
          return { ...s, value, name: declare(names, s.name) };
        }
        case "loads": {
          const index = within(s.index, names);
          return { ...s, index, names: s.names.map((n) => declare(names, n)) };
        }
        case "for": {
          const head = within({ ...s, name: "", body: [] }, names);
          const inner = new Map(names);
          const name = declare(inner, s.name);
          return { ...head as object, name, body: block(s.body, inner) };
        }
        case "if":
          return {
            ...s,
            condition: within(s.condition, names),
            then: block(s.then, names),
            else: s.else?.length ? block(s.else, names) : undefined,
          };
        default:
          return within(s, names);
      }
    });
  };
  return { ...kernel, body: block(kernel.body, new Map()) };
}

/** Prints a line for each kernel of a plan. */
function print(title: string, plan: Plan): void {
  for (const [name, { tree }] of Object.entries(plan.kernels)) {
    console.log(`${title} | ${name} | ${hash(tree)} | ${hash(numbered(tree))}`);
  }
}

/** Prints the kernels of a plan, or the error of its compilation. */
async function report(title: string, plan: () => Promise<Plan>): Promise<void> {
  try {
    print(title, await plan());
  } catch (error) {
    console.log(`${title} | ${(error as Error).message.split("\n")[0]}`);
  }
}

const TUNINGS: readonly NonNullable<CompileOptions["tuning"]>[] = [
  {},
  {
    attention: 4,
    matmul: { rows: 4, columns: 4, lanes: 64, split: 4, left: "workgroup" },
  },
  {
    attention: 2,
    matmul: { rows: 2, columns: 8, lanes: 64, split: 8, right: "vector" },
  },
];

const MESHES: readonly CompileOptions[] = [
  {},
  { mesh: { ep: 2 } },
  { mesh: { ep: 3 }, check: true },
  { mesh: { dp: 2, ep: 2 }, chunks: 2, tuning: TUNINGS[1]! },
  { mesh: { dp: 2, ep: 2 }, deduplicate: true, check: true },
];

const BOUNDS = [
  { maxTokens: 64, maxSequences: 4, maxContext: 64 },
  { maxTokens: 500, maxSequences: 3, maxContext: 200 },
];

async function checkpoints(): Promise<void> {
  const folders = readdirSync(
    fileURLToPath(new URL("../references", import.meta.url)),
  ).filter((name) => /\d+e(-|$)/.test(name));
  for (const name of ["demo-lm", ...folders.sort()]) {
    const target = await loadTarget(checkpointFolder(name), files);
    for (const mesh of ["ep=1", "ep=2", "dp=2,ep=2"]) {
      for (const [b, bounds] of BOUNDS.entries()) {
        for (const [i, tuning] of TUNINGS.entries()) {
          await report(
            `${name} ${mesh} bounds ${b} tuning ${i}`,
            () =>
              planTarget(target, files, {
                mesh: meshOf(mesh),
                bounds,
                tuning,
                ...b === 0 ? { next: { candidates: 8 } } : { check: true },
              }),
          );
        }
      }
    }
    const config = JSON.parse(
      await files.readText(`${checkpointFolder(name)}/config.json`),
    ) as Config;
    for (const options of MESHES) {
      await report(
        `${name} training ${JSON.stringify(options)}`,
        () =>
          compileTraining(
            publishedModel(config).build({
              ...BOUNDS[0]!,
              training: { auxiliary: 0.01 },
            }),
            {
              ...options,
              loss: "loss",
              optimizer: { kind: "adamW", betas: [0.9, 0.95] },
              clipNorm: 1,
            },
          ),
      );
    }
  }
}

async function routers(): Promise<void> {
  for (const preset of Object.keys(ROUTING_PRESETS) as RoutingPreset[]) {
    const rule = ROUTING_PRESETS[preset] as { readonly chooses?: number };
    for (const topK of rule.chooses ? [rule.chooses] : [1, 3, 8]) {
      for (const [i, options] of ROUTERS.entries()) {
        // Two sets of operands for each option; together all sets.
        for (const extra of [EXTRAS[0]!, EXTRAS[1 + (i + topK) % 7]!]) {
          const title = `${preset} ${topK} ${JSON.stringify(options)} ${extra}`;
          await report(title, () =>
            compileGraph(
              trace(routedLayer(preset, topK, { extra, ...options })),
              MESHES[extra.length === 0 ? 1 : 0],
            ));
        }
      }
      await report(
        `${preset} ${topK} training`,
        () =>
          compileTraining(routedLayer(preset, topK, { extra: [] }), {
            mesh: { dp: 2, ep: 2 },
            loss: "loss",
            optimizer: { kind: "sgd", momentum: 0.5 },
          }),
      );
    }
  }
}

const parts = process.argv.slice(2);
if (parts.length === 0 || parts.includes("routers")) await routers();
if (parts.length === 0 || parts.includes("checkpoints")) await checkpoints();
