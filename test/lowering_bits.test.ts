/** Results have the same bits for every mesh, placement and tile. */
// needs: cpu, gpu

import { readFileSync } from "node:fs";
import t from "tap";
import {
  add,
  combine,
  compile,
  type CompileOptions,
  dispatch,
  div,
  dot,
  max,
  maximum,
  model,
  rmsNorm,
  route,
  softmax,
  sum,
  topK,
  upTo,
} from "../compiler/mod.ts";
import { runOpened } from "../engine/mod.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import {
  checkpointFolder,
  loadFolder,
  padBatch,
  readReference,
} from "./helpers/checkpoints.ts";
import { devicesInTurn, skipUnasked } from "./helpers/needs.ts";
import { inTurn } from "./helpers/seed.ts";
import {
  type Case,
  closeDevices,
  digest,
  matches,
  MESHES,
  othersInTurn,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

t.test("constants that differ in the sign of 0 or infinity are distinct", async (t) => {
  const zeros: Case = {
    calls: [{ x: [-0, 1] }],
    model: model({ token: 2 }, (m) => {
      const x = m.input("x", "token");
      return {
        plus: add(x, 0),
        minus: add(x, -0),
        top: maximum(x, -Infinity),
        low: maximum(x, Infinity),
      };
    }),
  };
  const [found] = await runCase(zeros, "cpu");
  t.strictSame([...found!.plus!.data], [0, 1]);
  t.ok(Object.is(found!.plus!.data[0], 0));
  t.ok(Object.is(found!.minus!.data[0], -0));
  t.strictSame([...found!.top!.data].map(Math.abs), [0, 1]);
  t.strictSame([...found!.low!.data], [Infinity, Infinity]);
});

t.test("ops and sums over short axes are one kernel, with the same bits", async (t) => {
  const doubly = model({ token: upTo(3), row: 3, column: 4 }, (m) => {
    let y = m.input("x", "token row column");
    for (let i = 0; i < 3; i++) {
      y = add(div(y, add(sum(y, "column"), 1)), 0.5);
      y = div(y, add(sum(y, "row"), 1));
    }
    return { y };
  });
  const of: Case = { calls: [{ x: waves(3 * 12) }], model: doubly };
  const round = Math.fround;
  const x = waves(3 * 12);
  const sumOf = (cells: readonly number[]) =>
    cells.reduce((total, cell) => round(total + round(x[cell]!)), 0);
  const all = [0, 1, 2, 3];
  const divide = (cells: readonly number[], more: number) => {
    const by = round(sumOf(cells) + 1);
    for (const cell of cells) {
      x[cell] = round(round(round(x[cell]!) / by) + more);
    }
  };
  for (let i = 0; i < 3; i++) {
    for (let row = 0; row < 9; row++) divide(all.map((c) => 4 * row + c), 0.5);
    for (let token = 0; token < 3; token++) {
      for (const c of all) {
        divide([0, 4, 8].map((row) => 12 * token + row + c), 0);
      }
    }
  }
  const plan = await compile(doubly);
  t.strictSame(plan.programs[0]!.steps.map(({ op }) => op), ["launch"]);
  for (const kind of ["cpu", "gpu"] as const) {
    if (kind === "gpu" && skip) {
      t.comment(skip);
      continue;
    }
    const [found] = await runCase(of, kind);
    const differ = x.map((value, i) => value - found!.y!.data[i]!);
    // Drivers may round quotients differently.
    const limit = kind === "cpu" ? 0 : 1e-5;
    t.ok(
      differ.every((error) => Math.abs(error) <= limit),
      `${kind} ${differ}`,
    );
  }
});

/** Whether two elements of [token, row 3, column 4] have the same token and row. */
function isInRow(i: number, j: number): boolean {
  return i >> 2 === j >> 2;
}

/** Whether two elements of [token, row 3, column 4] have the same token and column. */
function isInColumn(i: number, j: number): boolean {
  return Math.floor(i / 12) === Math.floor(j / 12) && i % 4 === j % 4;
}

/** Whether a value differs from the expected one by less than 1e-4, relative to values above 1. */
function isNear(value: number, wanted: number): boolean {
  return Math.abs(value - wanted) < 1e-4 * Math.max(1, Math.abs(wanted));
}

t.test("a kernel of short sums does not contain values with other users", async (t) => {
  const tokens = 3;
  const used = model({ token: upTo(tokens), row: 3, column: 4 }, (m) => {
    const divided = (y: typeof x, axis: "row" | "column") =>
      div(y, add(sum(y, axis), 1));
    const x = m.input("x", "token row column");
    const named = divided(x, "column");
    const twice = divided(named, "row");
    const last = div(divided(twice, "column"), max(twice, "row"));
    return { named, last, total: sum(twice, "token") };
  });
  const x = waves(tokens * 12);
  const sumOver = (
    y: readonly number[],
    same: (i: number, j: number) => boolean,
  ) => y.map((_, i) => y.filter((_, j) => same(i, j)).reduce((a, b) => a + b));
  const divided = (y: readonly number[], same: typeof isInRow) => {
    const sums = sumOver(y, same);
    return y.map((value, i) => value / (sums[i]! + 1));
  };
  const named = divided(x, isInRow);
  const twice = divided(named, isInColumn);
  const wanted = {
    named,
    last: divided(twice, isInRow).map((value, i) =>
      value / Math.max(...twice.filter((_, j) => isInColumn(i, j)))
    ),
    total: sumOver(twice, (i, j) => i % 12 === j % 12).slice(0, 12),
  };
  const [found] = await runCase({ calls: [{ x }], model: used }, "cpu");
  for (const [name, values] of Object.entries(wanted)) {
    const { data } = found![name]!;
    t.equal(data.length, values.length);
    t.ok(
      values.every((value, i) => isNear(data[i]!, value)),
      `${name} ${data}`,
    );
  }
});

t.test("equal chains of short sums share a kernel, independent of operands", async (t) => {
  // Each sum has one user.
  const chains: readonly (readonly [string, string, number])[] = [
    ["a", "a", 1],
    ["b", "b", 1],
    ["c", "d", 1],
    ["d", "e", 1],
    ["e", "a", 2],
  ];
  const names = ["a", "b", "c", "d", "e"];
  const all = model({ token: upTo(3), row: 3, column: 4 }, (m) => {
    const inputs = new Map(
      names.map((name) => [name, m.input(name, "token row column")]),
    );
    return Object.fromEntries(chains.map(([of, by, more]) => {
      const total = add(sum(inputs.get(of)!, "column"), more);
      const once = div(inputs.get(by)!, total);
      return [of + by, div(once, add(sum(once, "row"), more))];
    }));
  });
  const inputs = Object.fromEntries(
    names.map((name, i) => [name, waves(36, 7 * i)]),
  );
  const { kernels } = await compile(all);
  t.equal(Object.keys(kernels).length, 3);
  const [found] = await runCase({ calls: [inputs], model: all }, "cpu");
  for (const [of, by, more] of chains) {
    const sumOf = (y: readonly number[], isSummed: (j: number) => boolean) =>
      y.reduce((total, value, j) => isSummed(j) ? total + value : total, 0);
    const once = inputs[by]!.map((value, i) =>
      value / (sumOf(inputs[of]!, (j) => isInRow(i, j)) + more)
    );
    const { data } = found![of + by]!;
    t.ok(
      once.every((value, i) => {
        const wanted = value / (sumOf(once, (j) => isInColumn(i, j)) + more);
        return isNear(data[i]!, wanted);
      }),
      `${of}${by} ${data}`,
    );
  }
});

const bits: Case = {
  stored: "bf16",
  calls: [{ x: waves(9 * 40), who: [2, 0, 1, 1, 0, 0, 2, 1, 0] }, {
    x: waves(40, 5),
    who: [1],
  }],
  model: model({
    token: upTo(9),
    embed: 40,
    ffn: 37,
    expert: 5,
    vocab: 2100,
  }, (m) => {
    const x = m.input("x", "token embed");
    const normed = rmsNorm(x, m.param("first", "embed"), "embed");
    const logits = dot(normed, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 3,
      preset: "mixtral",
    });
    const up = dot(
      dispatch(normed, routing),
      m.param("up.{expert}", "expert ffn embed"),
      "embed",
    );
    const y = combine(
      dot(up, m.param("down.{expert}", "expert embed ffn"), "ffn"),
      routing,
    );
    const slotted = route(logits, {
      over: "expert",
      topK: 2,
      preset: "fairscale.top2",
      choice: "pair",
      group: m.input("who", "token", { dtype: "i32" }),
    });
    const z = combine(dispatch(x, slotted), slotted);
    const after = dot(
      rmsNorm(add(add(x, y), z), m.param("gain", "embed"), "embed"),
      m.param("after", "ffn embed"),
      "embed",
    );
    const best = topK(m.param("vocab", "vocab"), {
      over: "vocab",
      k: 40,
      axis: "best",
    });
    return {
      y,
      z,
      after,
      best: best.values,
      ids: best.indices,
      all: softmax(after, "ffn"),
      total: sum(after, "ffn"),
    };
  }),
};
const PLACES: readonly CompileOptions[] = [
  ...MESHES,
  {
    mesh: { ep: 2 },
    place: { token: "ep", expert: { over: "ep", table: [[3, 0], [1, 4, 2]] } },
  },
  { mesh: { dp: 2 }, place: { token: "dp" } },
  // Arenas of one buffer or two.
  { mesh: { ep: 2 }, limits: { maxBufferSize: 16384 } },
  { tuning: { matmul: { rows: 2, columns: 2, lanes: 8 } } },
  { tuning: TUNING.gpu },
  // Routers assign few choices; matmuls compute norms of one row.
  { tuning: TUNING.gpu, limits: { maxStorageBuffersPerShaderStage: 16 } },
  { mesh: { ep: 2 }, tuning: { matmul: { rows: 1, columns: 4, lanes: 16 } } },
  {
    tuning: {
      matmul: { rows: 8, columns: 4, lanes: 8, code: "small" },
      matmuls: {
        "grouped bf16 64x64": { rows: 4, columns: 2, lanes: 16 },
        "plain bf16 64x64": { rows: 16, columns: 2, lanes: 4 },
      },
    },
  },
];
for (const kind of devicesInTurn("lowering_bits")) {
  t.test(`the same bits on every mesh and with every tile, ${kind}`, {
    skip: kind === "gpu" && skip,
  }, async (t) => {
    await matches(t, bits, kind);
    const wanted = digest(await runCase(bits, kind));
    for (const options of othersInTurn(PLACES, kind)) {
      t.equal(
        digest(await runCase(bits, kind, options)),
        wanted,
        JSON.stringify(options),
      );
    }
  });
}

t.test("checks of a run find no errors", async (t) => {
  for (const options of PLACES.slice(0, 6)) {
    const results = await runCase(bits, "cpu", { ...options, check: true });
    for (const outputs of results) {
      const counts = [outputs["check.0"]!, outputs["check.1"]!];
      t.same(
        counts.map(({ data }) => Math.max(...data)),
        [0, 0],
        JSON.stringify(options),
      );
    }
  }
});

/** Logits of steps of five tokens and one, and the kernels of the plan. Default target: the checkpoint. */
async function logitsOf(
  name: string,
  options: Omit<CompileOptions, "mesh"> & {
    readonly mesh: string;
    readonly random?: number;
  },
  target = checkpointFolder(name),
): Promise<{ readonly logits: readonly number[]; readonly kernels: string }> {
  const ids = [...(await readReference(name))["p0.input_ids"]!.data];
  const loaded = await loadFolder(target, { adapter: "cpu", ...options });
  const logits: number[] = [];
  for (const tokens of [ids.slice(0, 5), ids.slice(1, 2)]) {
    const outputs = await runOpened(loaded, padBatch([tokens]));
    logits.push(...outputs.logits!.data);
  }
  await loaded.close();
  return { logits, kernels: Object.keys(loaded.plan.kernels).join() };
}

t.test("wide devices have fewer launches, and the same bits", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const limits = { maxStorageBuffersPerShaderStage: 16 };
  const cases = {
    // The shared expert and the router share a kernel with the norm.
    "qwen2moe-8e": /matmul_64x8_norm_and_matmul_pair_64x96_norm/,
    // A latent vector is normalized, rotated and cached by one kernel; queries need no concat.
    "deepseekv3-16e": /^(?!.*(cacheWrite|concat|slice))/,
  };
  for (const [name, kernels] of inTurn(Object.entries(cases), 2)) {
    const { logits, kernels: narrow } = await logitsOf(name, { mesh: "ep=1" });
    t.notMatch(narrow, kernels);
    for (const mesh of ["ep=1", "ep=2", "tp=2,ep=2"]) {
      const wide = await logitsOf(name, { mesh, tuning: TUNING.gpu, limits });
      t.ok(wide.logits.every((x, i) => x === logits[i]), `${name}, ${mesh}`);
      if (mesh.startsWith("tp")) continue;
      t.match(wide.kernels, kernels);
      if (mesh === "ep=2") t.match(wide.kernels, /router_\d+_assign/);
    }
  }
});

t.test("the row of one token is sent without its assignment, same bits", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const name = "qwen2moe-8e";
  const strategies = {
    "choices": {},
    "tokens once": { deduplicate: true },
    "two chunks": { deduplicate: true, chunks: 2 },
    "encoded rows": { wire: "fp8" },
  } as const;
  for (const [what, strategy] of Object.entries(strategies)) {
    const options = { mesh: "ep=2", ...strategy };
    const { logits, kernels } = await logitsOf(name, options);
    t.notMatch(kernels, /permute_one/);
    const wide = await logitsOf(name, { ...options, tuning: TUNING.gpu });
    t.match(wide.kernels, /permute_one/, what);
    t.ok(wide.logits.every((x, i) => Object.is(x, logits[i])), what);
  }
});

t.test(
  "launches with other grids for several tokens are one, with the same bits",
  {
    skip: skipUnasked("cpu"),
  },
  async (t) => {
    const name = "deepseekv3-16e";
    const file = `${checkpointFolder(name)}/config.json`;
    const config = JSON.parse(readFileSync(file, "utf8"));
    // Norms of such latents have the lanes of contractions.
    const folder = t.testdir({
      "config.json": JSON.stringify({ ...config, kv_lora_rank: 512 }),
    });
    const changed = `${folder}/config.json`;
    const options = { mesh: "ep=1", random: 1 };
    const { logits } = await logitsOf(name, options, changed);
    const wide = await logitsOf(
      name,
      { ...options, tuning: TUNING.gpu },
      changed,
    );
    t.match(wide.kernels, /contract_nope\w*_and_rmsNorm/);
    t.match(wide.kernels, /choices_matmul\w*_and_matmul/);
    t.ok(wide.logits.every((x, i) => Object.is(x, logits[i])));
  },
);

t.test("matrices after latent attention merge its blocks, same bits", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  const name = "deepseekv3-16e";
  const file = `${checkpointFolder(name)}/config.json`;
  const config = JSON.parse(readFileSync(file, "utf8"));
  const folder = t.testdir({
    "config.json": JSON.stringify({ ...config, kv_lora_rank: 256 }),
  });
  const options = { random: 1 };
  const changed = `${folder}/config.json`;
  const { logits } = await logitsOf(
    name,
    { ...options, mesh: "ep=1" },
    changed,
  );
  for (const mesh of ["ep=1", "tp=2,ep=2"]) {
    const wide = await logitsOf(
      name,
      { ...options, mesh, tuning: TUNING.gpu },
      changed,
    );
    t.match(wide.kernels, /merge_contract/, mesh);
    t.notMatch(wide.kernels, /attention_\w*_merge/, mesh);
    t.ok(wide.logits.every((x, i) => Object.is(x, logits[i])), mesh);
  }
});

t.test(
  "blocks of keys compute the query and key of one token, with the same bits",
  {
    skip: skipUnasked("cpu"),
  },
  async (t) => {
    const cases = {
      // Norms and rotation; biases and rotation.
      "qwen3moe-16e": {},
      "gptoss-8e": { head_dim: 32 },
    };
    for (const [name, change] of inTurn(Object.entries(cases), 2)) {
      const file = `${checkpointFolder(name)}/config.json`;
      const config = JSON.parse(readFileSync(file, "utf8"));
      const folder = t.testdir({
        "config.json": JSON.stringify({ ...config, ...change }),
      });
      const changed = `${folder}/config.json`;
      const options = { mesh: "ep=1", random: 1 };
      const limits = { maxStorageBuffersPerShaderStage: 16 };
      const { logits } = await logitsOf(name, options, changed);
      const wide = await logitsOf(
        name,
        { ...options, tuning: TUNING.gpu, limits },
        changed,
      );
      t.match(wide.kernels, /parts_new/);
      t.ok(wide.logits.every((x, i) => Object.is(x, logits[i])), name);
    }
  },
);

/** Checkpoints that differ in router, weight encoding and activation. */
const EXPERTS = [
  "deepseekv3-16e-fp8",
  "gptoss-8e",
  "gptoss-8e-mxfp4",
  "hunyuanmoe-12e",
  "kimik2-16e-int4",
  "lfm2moe-16e",
  "mixtral-6e",
  "qwen3moe-8e-bf16",
];

t.test("experts of one token need two launches, with the same bits", {
  skip: skipUnasked("cpu"),
}, async (t) => {
  for (const name of inTurn(EXPERTS, 8)) {
    const mesh = "ep=1";
    const { logits, kernels: narrow } = await logitsOf(name, { mesh });
    t.notMatch(narrow, /choices_matmul|combined_matmul/);
    const wide = await logitsOf(name, { mesh, tuning: TUNING.gpu });
    t.match(wide.kernels, /choices_matmul/);
    t.match(wide.kernels, /combined_matmul/);
    t.ok(wide.logits.every((x, i) => Object.is(x, logits[i])), name);
  }
});
