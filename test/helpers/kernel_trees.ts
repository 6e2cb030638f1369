/**
 * A program: prints the hash of every kernel tree of many plans, a line each, so that two versions of the compiler can be
 * compared by `diff`. The second hash does not depend on the names of variables.
 *
 *     node scripts/run.mjs test/helpers/kernel_trees.ts > trees.txt
 */

import { createHash } from "node:crypto";
import { readdirSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import {
  balancingLoss,
  combine,
  type CompileOptions,
  compileTraining,
  dispatch,
  dot,
  map,
  mean,
  type Model,
  model,
  mul,
  route,
  type RoutingPreset,
  upTo,
} from "../../compiler/mod.ts";
import { compileGraph } from "../../compiler/compile.ts";
import { trace } from "../../compiler/graph/trace.ts";
import { ROUTING_PRESETS } from "../../compiler/graph/routing.ts";
import { loadTarget, planTarget } from "../../engine/mod.ts";
import { type Config, publishedModel } from "../../models/mod.ts";
import type { Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Plan } from "../../spec/plan.ts";
import { checkpointFolder, files, meshOf } from "./checkpoints.ts";

function hash(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex")
    .slice(0, 12);
}

/** A tree whose variables are numbered in the order of their declarations. */
function numbered(kernel: Kernel): unknown {
  const names = new Map<string, string>();
  const declare = (name: string) => names.set(name, `v${names.size}`);
  const visit = (body: readonly Stmt[]): void => {
    for (const s of body) {
      if (s.op === "let" || s.op === "var" || s.op === "for") declare(s.name);
      if (s.op === "loads") s.names.forEach(declare);
      if (s.op === "for") visit(s.body);
      if (s.op === "if") [s.then, s.else ?? []].forEach(visit);
    }
  };
  visit(kernel.body);
  return JSON.parse(
    JSON.stringify(kernel),
    (key, value) =>
      key === "name" && typeof value === "string"
        ? names.get(value) ?? value
        : key === "names"
        ? (value as string[]).map((name) => names.get(name))
        : key === "else" && Array.isArray(value) && value.length === 0
        ? undefined
        : value as unknown,
  );
}

/** One line for each kernel of a plan. */
function print(title: string, plan: Plan): void {
  for (const [name, { tree }] of Object.entries(plan.kernels)) {
    console.log(`${title} | ${name} | ${hash(tree)} | ${hash(numbered(tree))}`);
  }
}

/** Print the kernels of a plan, or say why there is none. */
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
  { mesh: { dp: 2, ep: 2 }, sendOnce: true, check: true },
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
                ...{ mesh: meshOf(mesh), bounds, tuning },
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

type Extra = "mask" | "noise" | "bias" | "group" | "random" | "choices";

/** A layer behind a router, with what it reads besides its logits. */
function layer(
  preset: RoutingPreset,
  topK: number,
  { extra, ...options }: {
    readonly extra: readonly Extra[];
    readonly [option: string]: unknown;
  },
): Model {
  const axes = { embed: 12, ffn: 10, expert: 8, choice: topK };
  return model({ token: upTo(90), ...axes }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const operands = {
      mask: () => m.input("mask", "token", { dtype: "i32" }),
      noise: () => m.input("noise", "token expert"),
      bias: () => m.param("bias", "expert"),
      group: () => m.input("group", "token", { dtype: "i32" }),
      random: () => m.input("random", "token expert"),
      choices: () => m.input("choices", "token choice", { dtype: "i32" }),
    };
    const routing = route(logits, {
      ...{ over: "expert", topK, preset, ...options },
      ...Object.fromEntries(extra.map((name) => [name, operands[name]()])),
    } as never) as never;
    const sent = dispatch(x as never, routing);
    const hidden = map(
      (g) => g / (1 + Math.exp(-g)),
      dot(sent as never, m.param("up.{expert}", "expert ffn embed"), "embed"),
    );
    const down = m.param("down.{expert}", "expert embed ffn");
    const y = combine(dot(hidden as never, down, "ffn") as never, routing);
    const loss = mean(mean(map((v) => v * v, y as never), "embed"), "token");
    const balance = balancingLoss(logits, routing, { over: "expert" } as never);
    return { y, loss: mul(loss as never, balance as never) } as never;
  });
}

const EXTRAS: readonly (readonly Extra[])[] = [
  ...[[], ["mask"], ["noise"], ["bias"], ["group"]],
  ...[["group", "mask", "noise"], ["random"], ["choices"]],
] as Extra[][];

const ROUTERS: readonly { readonly [option: string]: unknown }[] = [
  {},
  { capacity: { factor: 0.75 } },
  { capacity: { slots: 5, drop: "score", order: "token" } },
  { capacity: { slots: 5, drop: "position", order: "choice" } },
  { capacity: { factor: 1.5, prioritised: true } },
  { capacity: { slots: "largest" } },
  { expertGroups: { count: 4, keep: 2 } },
  { expertGroups: { count: 4, keep: 2, best: 1 }, scale: 2.5 },
  { normalize: "kept", least: 1e-3 },
  { normalize: "chosen", epsilon: 1e-6, scale: 1.5 },
];

async function routers(): Promise<void> {
  for (const preset of Object.keys(ROUTING_PRESETS) as RoutingPreset[]) {
    const rule = ROUTING_PRESETS[preset] as { readonly chooses?: number };
    for (const topK of rule.chooses ? [rule.chooses] : [1, 3, 8]) {
      for (const [i, options] of ROUTERS.entries()) {
        // Each with two sets of operands, all sets with one or another.
        for (const extra of [EXTRAS[0]!, EXTRAS[1 + (i + topK) % 7]!]) {
          const title = `${preset} ${topK} ${JSON.stringify(options)} ${extra}`;
          await report(title, () =>
            compileGraph(
              trace(layer(preset, topK, { extra, ...options })),
              MESHES[extra.length === 0 ? 1 : 0],
            ));
        }
      }
      await report(
        `${preset} ${topK} training`,
        () =>
          compileTraining(layer(preset, topK, { extra: [] }), {
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
