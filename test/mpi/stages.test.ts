// Pipeline stages on separate devices and both MPIs: inference and training compute the bytes of one rank in one
// process.
// needs: cpu, mpi
// rotates with: runtime/mpi/, compiler/sharding/stages.ts
import { rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import t, { type Test } from "tap";
import { launcherArguments } from "../../cli/launch/mpi_launcher.ts";
import { SCHEDULE_NAMES } from "../../spec/schedule.ts";
import { temporaryFolder } from "../helpers/cli.ts";
import { startedProgram } from "../helpers/compiled.ts";
import { type Launcher, LAUNCHERS, start } from "../helpers/mpi.ts";
import { ableInTurn, repeatWith, SEED } from "../helpers/seed.ts";
import {
  outputsOn,
  plannedMemory,
  STAGE_FAMILIES,
  STAGE_MESHES,
  type StageCell,
  stageModel,
  type StageResult,
  trainOn,
} from "../helpers/stage_cells.ts";
import { readOnDisk } from "../helpers/tiny_training.ts";

/** STAGES=all runs every family on every mesh in all four settings. Default: a setting draws one cell by SEED. */
const ALL = process.env["STAGES"] === "all";

const SEPARATE = { skip: false } as const;
/** One process or one of the MPIs, and missing MPIs, whose tests are skipped. */
const DRAWN = ableInTurn<Pick<Launcher, "skip">>([SEPARATE, ...LAUNCHERS]);

const scratch = temporaryFolder(t);
const at = (...names: readonly string[]) => path.join(scratch, names.join(" "));

const cells = STAGE_MESHES.flatMap((mesh, i) =>
  STAGE_FAMILIES.map((family, j) => ({
    family,
    mesh,
    schedule: SCHEDULE_NAMES[(i + j) % SCHEDULE_NAMES.length]!,
  }))
);

/** All cells of a setting, or a different one for each. */
function drawn(setting: number, able = cells): typeof cells {
  // Five cells later, both mesh and family differ.
  return ALL ? able : [able[(Math.abs(SEED) + 5 * setting) % able.length]!];
}

function ranksOf(mesh: string): number {
  return mesh.match(/\d+/g)!.reduce((n, size) => n * Number(size), 1);
}

const models = new Map<string, string>();
for (const family of STAGE_FAMILIES) {
  models.set(family, await stageModel(t, family));
}

const wanted = new Map<string, Promise<unknown>>();

function once<T>(key: string, make: () => Promise<T>): Promise<T> {
  const found = wanted.get(key) as Promise<T> | undefined;
  const value = found ?? make();
  wanted.set(key, value);
  return value;
}

/** Trains a family without stages on the other axes of a mesh, or on one rank. Returns the checkpoint. */
function withoutStages(family: string, mesh: string): Promise<string> {
  const others = mesh.split(",").filter((axis) => !axis.startsWith("pp"));
  const rest = others.join(",") || "ep=1";
  const out = at(family, rest);
  return once(out, async () => {
    await trainOn({ model: models.get(family)!, mesh: rest, out }, "shared");
    return out;
  });
}

async function cellOf(
  { family, ...cell }: (typeof cells)[number],
  setting: string,
): Promise<StageCell> {
  const out = at(family, cell.mesh, setting);
  rmSync(out, { force: true, recursive: true });
  return {
    ...cell,
    model: models.get(family)!,
    checkpoint: await withoutStages(family, "ep=1"),
    out,
  };
}

/** Compares outputs with one rank, and training with the same micro-batches on the other axes of the mesh. */
async function compare(
  t: Test,
  { family, mesh }: (typeof cells)[number],
  { cell, results }: {
    readonly cell: StageCell;
    readonly results: readonly StageResult[];
  },
): Promise<void> {
  const { checkpoint } = cell;
  const outputs = await once(
    `outputs ${family}`,
    () => outputsOn({ checkpoint, mesh: "ep=1" }, "shared"),
  );
  const name = `${family} on ${mesh}`;
  // Only rank 0 has outputs.
  t.equal(results[0]!.outputs, outputs, `outputs of ${name}`);
  const [trained, reference] = [
    await readOnDisk(cell.out),
    await readOnDisk(await withoutStages(family, mesh)),
  ];
  const { parameters, optimizerState } = trained;
  t.same(parameters, reference.parameters, `parameters of ${name}`);
  t.same(optimizerState, reference.optimizerState, `states of ${name}`);
  const planned = await once(
    `plan ${family} ${mesh}`,
    () => plannedMemory(cell),
  );
  t.strictSame(
    results.map(({ memory }) => memory),
    results.length === 1 ? [Math.max(...planned)] : planned,
    `memory of training ${name}`,
  );
}

const SHARINGS = ALL
  ? ["shared", "separate"] as const
  : DRAWN.includes(SEPARATE)
  ? ["separate"] as const
  : [];

for (const [i, sharing] of SHARINGS.entries()) {
  t.test(`one process, devices ${sharing}`, async (t) => {
    t.comment(repeatWith());
    for (const one of drawn(i)) {
      const cell = await cellOf(one, sharing);
      const outputs = await outputsOn(cell, sharing);
      const memory = await trainOn(cell, sharing);
      await compare(t, one, { cell, results: [{ outputs, memory }] });
    }
  });
}

const launchers = ALL
  ? LAUNCHERS
  : LAUNCHERS.filter((launcher) => DRAWN.includes(launcher));

for (const [i, { name, command, family, skip }] of launchers.entries()) {
  const large = cells.filter(({ mesh }) => ranksOf(mesh) === 4);
  for (const mesh of ALL ? STAGE_MESHES : ["4 ranks"]) {
    t.test(`${name}: ${mesh}`, { skip }, async (t) => {
      t.comment(repeatWith());
      const selected = ALL
        ? cells.filter((one) => one.mesh === mesh)
        : drawn(2 + i, large);
      const ranks = ranksOf(selected[0]!.mesh);
      const list: StageCell[] = [];
      for (const one of selected) list.push(await cellOf(one, name));
      writeFileSync(at("cells.json"), JSON.stringify(list));
      const root = process.getuid?.() === 0;
      const { code, out, err } = await start(command!, [
        ...launcherArguments(family, { ranks, root }),
        ...[process.execPath, ...startedProgram("test/helpers/stages_rank.ts")],
        at("cells.json"),
      ]).ended;
      t.equal(code, 0, err);
      const results = JSON.parse(out) as StageResult[][];
      for (const [i, one] of selected.entries()) {
        await compare(t, one, { cell: list[i]!, results: results[i]! });
      }
    });
  }
}
