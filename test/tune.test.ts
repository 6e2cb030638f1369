/** The tuner: saved tables and their file; no table changes bits. */
// needs: cpu, gpu
// rotates with: engine/tune/, engine/tune/tuning.ts

import { rmSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import t from "tap";
import {
  combine,
  compile,
  dispatch,
  dot,
  map,
  matmulClass,
  type MatmulTile,
  model,
  route,
  type TuningTable,
  upTo,
} from "../compiler/mod.ts";
import { tileFor } from "../compiler/tuning/mod.ts";
import { nodeFiles } from "../cli/files.ts";
import { selectDevices } from "../engine/devices.ts";
import { keepTuning, readTunings, tune } from "../engine/tune/mod.ts";
import { TUNING, tuningOf } from "../engine/tune/tuning.ts";
import { CACHE, switchyard, temporaryFolder } from "./helpers/cli.ts";
import {
  type Case,
  closeDevices,
  digest,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";
import { holdsFor } from "./helpers/seed.ts";

t.teardown(closeDevices);

const layer = model({ token: upTo(9), embed: 40, ffn: 24, expert: 3 }, (m) => {
  const x = m.input("x", "token embed");
  const logits = dot(x, m.param("router", "expert embed"), "embed");
  const routing = route(logits, { over: "expert", topK: 2, preset: "mixtral" });
  const sent = dispatch(x, routing);
  const gate = dot(sent, m.param("gate.{expert}", "expert ffn embed"), "embed");
  const up = dot(sent, m.param("up.{expert}", "expert ffn embed"), "embed");
  const done = dot(
    map((g, u) => g * u, gate, up),
    m.param("down.{expert}", "expert embed ffn"),
    "ffn",
  );
  return { y: combine(done, routing) };
});

const layerCase: Case = {
  model: layer,
  stored: "bf16",
  calls: [{ x: waves(9 * 40) }, { x: waves(40, 5) }],
};

/** A clock on which every interval is shorter than the one before. */
function quickening(): () => number {
  let [time, step] = [0, 1e9];
  return () => {
    time += step;
    step *= 0.99;
    return time;
  };
}

t.test("a tuner tries every kernel, and its result does not change bits", async (t) => {
  const selected = await selectDevices({ sharing: "shared", adapter: "cpu" });
  const seen: string[] = [];
  const found = await tune(
    { compile: (tuning) => compile(layer, { tuning }) },
    selected,
    {
      budget: Infinity,
      now: quickening(),
      onTried: (kernel) => seen.push(kernel),
    },
  );
  t.ok(found.complete);
  t.equal(found.tried, seen.length);
  t.strictSame([...new Set(seen)].sort(), [
    "grouped f32 32x64",
    "grouped pair f32 64x32",
    "plain f32 64x4",
  ]);
  t.strictSame(Object.keys(found.speed).sort(), [...new Set(seen)].sort());
  t.ok(
    Object.values(found.speed).every((speed) => speed > 1.04),
    "each class has a faster tile on that clock",
  );
  const plan = await compile(layer, { tuning: found.tuning });
  const names = Object.keys(plan.kernels).filter((name) =>
    name.includes("matmul")
  );
  t.equal(names.length, 3, "one kernel per class");
  t.ok(
    names.every((name) => /_by_\d+x\d+x\d+(_split16_workgroup)?$/.test(name)),
    "kernel names state the chosen tiles",
  );
  t.equal(
    digest(await runCase(layerCase, "cpu", { tuning: found.tuning })),
    digest(await runCase(layerCase, "cpu")),
  );
});

t.test("a tuner stops at its deadline", async (t) => {
  const selected = await selectDevices({ sharing: "shared", adapter: "cpu" });
  const found = await tune(
    { compile: (tuning) => compile(layer, { tuning }) },
    selected,
    { budget: 0, now: quickening() },
  );
  t.match(found, { complete: false, tried: 0 });
  t.same(found.tuning.matmul, TUNING.cpu.matmul);
});

for (const kind of ["cpu", "gpu"] as const) {
  t.test(`no table changes bits, ${kind}`, {
    skip: kind === "gpu" && skip,
  }, async (t) => {
    const wanted = digest(await runCase(layerCase, kind));
    // Software adapters compile the largest tiles for seconds.
    const max = kind === "cpu" ? [8, 16] : [];
    const tile = fc.record({
      rows: fc.constantFrom(1, 2, 3, 4, ...max),
      columns: fc.constantFrom(2, 4),
      lanes: fc.constantFrom(1, 4, 8, 32),
      split: fc.constantFrom(1, 2, 4),
      left: fc.constantFrom("registers", "workgroup"),
      right: fc.constantFrom("scalar", "vector", "workgroup"),
    }).map(({ split, ...tile }): MatmulTile => ({
      ...tile,
      // Pairs with 32 rows in "registers" reach the maximum tree size of a plan.
      split: tile.lanes % split === 0 && tile.rows * split <= 16 ? split : 1,
    }));
    const tables = fc.record({ matmul: tile, pair: tile, plain: tile });
    await holdsFor(t, tables, {
      check: async ({ matmul, pair, plain }) => {
        const tuning: TuningTable = {
          matmul,
          matmuls: {
            "grouped pair bf16 64x32": pair,
            "plain bf16 64x4": plain,
          },
        };
        t.equal(digest(await runCase(layerCase, kind, { tuning })), wanted);
      },
      runs: kind === "cpu" ? 10 : 2,
    });
  });
}

t.test("tables are saved per computer", async (t) => {
  const files = nodeFiles();
  const path = join(temporaryFolder(t), "tunings.json");
  t.same(await readTunings(files, path), {});
  const tile: MatmulTile = { rows: 8, columns: 4, lanes: 8 };
  const first = { matmul: tile, matmuls: { "plain f32 4x4": tile } };
  await keepTuning(files, path, { computer: "one", tuning: first });
  await keepTuning(files, path, {
    computer: "other",
    tuning: { attention: 4 },
  });
  const second = { matmul: tile, matmuls: { "plain f32 8x8": tile } };
  await keepTuning(files, path, { computer: "one", tuning: second });
  const saved = await readTunings(files, path);
  t.strictSame(Object.keys(saved["one"]!.matmuls!).sort(), [
    "plain f32 4x4",
    "plain f32 8x8",
  ]);
  // With other rows, tiles of grouped matmuls are dropped, as they were found for the old ones.
  const third = { matmul: { ...tile, rows: 4 }, matmuls: {} };
  await keepTuning(files, path, { computer: "one", tuning: third });
  t.same((await readTunings(files, path))["one"]!.matmuls, {});
  const shared: MatmulTile = { ...tile, split: 4, left: "workgroup" };
  const fourth = { matmul: shared, matmuls: { "plain f32 8x8": shared } };
  await keepTuning(files, path, { computer: "one", tuning: fourth });
  t.strictSame((await readTunings(files, path))["one"], fourth);
  const cpu = { host: "cpu", computer: "one", world: undefined } as const;
  t.same(tuningOf(cpu, { tunings: saved }).matmul, tile);
  t.same(tuningOf({ ...cpu, computer: "new" }, { tunings: saved }), TUNING.cpu);
  const recurrences = [4, 8, 16].map((lanes) => {
    const native = { ...cpu, host: "native", computer: "new", lanes } as const;
    return tuningOf(native, {}).recurrence;
  });
  t.same(
    recurrences,
    [2, 4, 2],
    "columns per lane depend on the vector length",
  );
  const write = (text: string) =>
    files.write(path, [new TextEncoder().encode(text)]);
  const broken = async (text: string, state: string) => {
    const notices: string[] = [];
    await write(text);
    const notice = (line: string) => void notices.push(line);
    t.same(await readTunings(files, path, { notice }), {});
    t.strictSame(notices, [
      `Cannot read tunings from '${path}': ${state}. Remove the file, or run 'switchyard tune' again. This run does without tunings`,
    ]);
  };
  await broken("{", "it is not JSON");
  await broken("", "it is not JSON");
  const wrong: [tile: object, state: string][] = [
    [{ rows: -1 }, "'/tunings/one/matmul/rows' must be at least 1"],
    [{ rows: undefined }, "'/tunings/one/matmul' has no field 'rows'"],
    [
      { split: 3 },
      "the 8 lanes of tile 8x4x8_split3 are not divisible by 3 teams",
    ],
    [
      { left: "nowhere" },
      "'/tunings/one/matmul/left' must be one of 'registers', 'workgroup'",
    ],
    [{ wide: true }, "'/tunings/one/matmul' has an unknown field 'wide'"],
  ];
  for (const [change, state] of wrong) {
    const tunings = { one: { matmul: { ...tile, ...change } } };
    await broken(JSON.stringify({ version: 2, tunings }), state);
  }
  const large = { one: { matmuls: { any: { ...tile, rows: 64 } } } };
  await broken(
    JSON.stringify({ version: 2, tunings: large }),
    "tile 64x4x8 has more than 128 results a lane",
  );
  const shape = { grouped: true, stored: "f32", k: 64, columns: 64 } as const;
  const high = { matmul: { ...tile, rows: 32, columns: 8 } };
  t.throws(() => tileFor(high, { ...shape, weights: 2 }), {
    name: "MachineError",
    message:
      "Cannot use tile 32x8x8 for 'grouped pair f32 64x64': a lane would hold 512 results, and 256 are allowed. Give fewer rows or columns",
  });
  await keepTuning(files, path, { computer: "one", tuning: fourth });
  t.strictSame(await readTunings(files, path), { one: fourth }, "it heals");
  await write('{"version":0,"tunings":7}');
  t.same(
    await readTunings(files, path),
    {},
    "tables of another version are ignored",
  );
});

t.test("the command saves its result, or states why it cannot", async (t) => {
  t.teardown(() => rmSync(CACHE, { recursive: true, force: true }));
  const model = "examples/layer.ts";
  const argv = ["tune", model, "--adapter", "cpu", "--budget", "0.001"];
  const { code, out, err } = await switchyard([...argv, "--json"]);
  t.equal(code, 0, err);
  const { computer, file, complete } = JSON.parse(out);
  t.equal(complete, false, "without time, nothing is tried");
  t.equal(file, join(CACHE, "switchyard", "tunings.json"));
  const saved = await readTunings(nodeFiles(), file);
  t.same(saved[computer]?.matmul, TUNING.cpu.matmul);
  t.match((await switchyard(argv)).out, /not all were tried within 0.001 s/);
  t.match(await switchyard(["tune", model, "--devices", "mpi"]), {
    code: 2,
    err: /Cannot tune with --devices mpi/,
  });
});

t.test("classes of matmuls", (t) => {
  const shape = {
    grouped: true,
    weights: 2,
    stored: "bf16",
    k: 100,
    columns: 512,
  } as const;
  t.equal(matmulClass(shape), "grouped pair bf16 128x512");
  t.end();
});
