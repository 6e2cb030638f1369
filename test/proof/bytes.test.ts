// Memory and traffic: predictions of plans and statistics of the runtime match the test's counts of buffers and of
// routed rows.
// needs: cpu, gpu
import t, { type Test } from "tap";
import { compile } from "../../compiler/mod.ts";
import { layer } from "../../examples/layer.ts";
import {
  type Device,
  openSafetensors,
  type TensorDirectory,
  writeSafetensors,
} from "../../runtime/mod.ts";
import { onRank, type Plan } from "../../spec/mod.ts";
import { gpuIsSoftware } from "../helpers/needs.ts";
import { checkPredictions } from "../helpers/predictions.ts";
import {
  compileCheckpoint,
  f32,
  openDevices,
  openSession,
  openWeights,
  packedPrompts,
  type Sharing,
  type Target,
  TARGETS,
  type Tensors,
  watchDevice,
} from "../helpers/sessions.ts";
import { inTurn } from "../helpers/seed.ts";

/** Sizes of the mesh axes. Ranks are `[dp][tp][ep]`, row-major. */
interface Mesh {
  readonly dp?: number;
  readonly tp?: number;
  readonly ep?: number;
}

const MESHES: readonly Mesh[] = [
  { ep: 1 },
  { ep: 2 },
  { ep: 4 },
  { dp: 2, ep: 2 },
  { tp: 2 },
  { tp: 2, ep: 2 },
];

/** Rank that caches each of four sequences of 9, 7, 5 and 3 tokens, assigned round-robin, by rank count. */
const SOURCES: { readonly [ranks: number]: readonly number[] } = {
  1: [0, 0, 0, 0],
  2: [0, 1, 0, 1],
  4: [0, 1, 2, 3],
};
const LENGTHS = [9, 7, 5, 3];

/** A run with known routing. */
interface Case {
  readonly name: string;
  readonly experts: number;
  /** Elements of a dispatched row. */
  readonly embed: number;
  readonly tensors: TensorDirectory;
  readonly inputs: Tensors;
  compile(mesh: Mesh): Promise<Plan>;
  /** Returns the rank of each token, for tokens sharded over `ranks` ranks. */
  sources(ranks: number): number[];
  /** Returns the experts of each token, for every routing. */
  choices(outputs: Tensors): number[][][];
}

/** Returns the block of each of `n` ids, for contiguous blocks of which the first `n mod parts` are one longer. */
function blocks(n: number, parts: number): number[] {
  return Array.from({ length: parts }, (_, p) => {
    const size = Math.floor(n / parts) + (p < n % parts ? 1 : 0);
    return new Array<number>(size).fill(p);
  }).flat();
}

function rowsOf(data: ArrayLike<number>, width: number): number[][] {
  return Array.from(
    { length: data.length / width },
    (_, row) => Array.from({ length: width }, (_, i) => data[row * width + i]!),
  );
}

async function checkpointCase(
  name: string,
  sizes: { readonly experts: number; readonly embed: number },
): Promise<Case> {
  return {
    name,
    ...sizes,
    tensors: await openWeights(name),
    inputs: packedPrompts(LENGTHS),
    compile: (mesh) => compileCheckpoint(name, { mesh: { ...mesh } }),
    sources: (ranks) =>
      LENGTHS.flatMap((length, s) =>
        new Array<number>(length).fill(SOURCES[ranks]![s]!)
      ),
    choices: (outputs) =>
      Object.entries(outputs)
        .filter(([output]) => output.endsWith("topk_idx"))
        .map(([, { data, shape }]) => rowsOf(data, shape.at(-1)!)),
  };
}

/** The example layer with a router that scores expert e by element e. */
async function layerCase(): Promise<Case> {
  const [tokens, embed, ffn, experts] = [50, 512, 1024, 8];
  const x = Float32Array.from(
    { length: tokens * embed },
    (_, i) => Math.sin(i * 0.37 + (i % 11) * (i % 7)),
  );
  const router = new Float32Array(experts * embed);
  for (let e = 0; e < experts; e++) router[e * embed + e] = 1;
  const expert = f32([ffn, embed], new Float32Array(ffn * embed).fill(0.01));
  const down = f32([embed, ffn], new Float32Array(ffn * embed).fill(0.01));
  const file = writeSafetensors({
    router: f32([experts, embed], router),
    ...Object.fromEntries(
      Array.from({ length: experts }, (_, e) => [
        [`experts.${e}.gate`, expert],
        [`experts.${e}.up`, expert],
        [`experts.${e}.down`, down],
      ]).flat(),
    ),
  });
  const tensors = await openSafetensors([{
    name: "weights",
    size: file.length,
    read: (offset, length) =>
      Promise.resolve(file.subarray(offset, offset + length)),
  }]);
  const choices = rowsOf(x, embed).map((row) =>
    blocks(experts, experts).sort((a, b) => row[b]! - row[a]!).slice(0, 2)
  );
  return {
    name: "the example layer",
    experts,
    embed,
    tensors,
    inputs: { x: f32([tokens, embed], x) },
    compile: (mesh) => compile(layer, { mesh: { ...mesh } }),
    sources: (ranks) => blocks(tokens, ranks),
    choices: () => [choices],
  };
}

/** Returns the rank that dispatches each token. Ranks of `tp` hold the same tokens; each dispatches a block of them. */
function dispatchers(
  { sources }: Case,
  { dp = 1, tp = 1, ep = 1 }: Mesh,
): number[] {
  const source = sources(dp * ep);
  const result: number[] = [];
  for (const at of new Set(source)) {
    const tokens = source.flatMap((rank, token) => rank === at ? [token] : []);
    blocks(tokens.length, tp).forEach((part, i) => {
      result[tokens[i]!] = (Math.floor(at / ep) * tp + part) * ep + at % ep;
    });
  }
  return result;
}

/** Returns the bytes that each rank sends to others, computed from the choices. */
function countTraffic(
  run: Case,
  choices: readonly (readonly (readonly number[])[])[],
  mesh: Mesh,
) {
  const { experts, embed } = run;
  const { dp = 1, tp = 1, ep = 1 } = mesh;
  const group = tp * ep;
  const owners = blocks(experts, group);
  const source = dispatchers(run, mesh);
  const sent = Array.from({ length: dp * group }, () => ({
    counts: choices.length * 4 * experts * (group - 1),
    dispatch: 0,
    combine: 0,
  }));
  for (const routing of choices) {
    for (const [token, chosen] of routing.entries()) {
      const from = source[token]!;
      for (const expert of chosen) {
        // Experts are sharded over ep, then tp, and exchanged among ranks of the same dp.
        const [shard, part] = [
          Math.floor(owners[expert]! / tp),
          owners[expert]! % tp,
        ];
        const to = Math.floor(from / group) * group + part * ep + shard;
        if (to === from) continue;
        sent[from]!.dispatch += 4 * embed;
        sent[to]!.combine += 4 * embed;
      }
    }
  }
  return sent;
}

/** Returns a device that adds the bytes of each buffer to the total of its rank. */
function countBuffers(device: Device, bytes: number[]): Device {
  return watchDevice(device, {
    createBuffer(length, label) {
      const rank = Number(/^rank (\d+) /.exec(label)![1]);
      bytes[rank]! += length;
      const buffer = device.createBuffer(length, label);
      return buffer;
    },
  });
}

async function compare(
  t: Test,
  run: Case,
  mesh: Mesh,
  where: { readonly target: Target; readonly sharing: Sharing },
): Promise<void> {
  const plan = await run.compile(mesh);
  const opened = await openDevices(plan, where);
  const allocated = opened.map(() => 0);
  const counting = new Map(
    [...new Set(opened)].map((
      device,
    ) => [device, countBuffers(device, allocated)]),
  );
  const session = await openSession(plan, {
    devices: opened.map((device) => counting.get(device)!),
    tensors: run.tensors,
    statistics: true,
  });
  const outputs = await session.run("main", run.inputs);
  checkPredictions(t, session);
  const { ranks } = session.statistics();
  session.close();
  const traffic = countTraffic(run, run.choices(outputs), mesh);
  for (const { rank, peakBytes, stagingBytes, sentBytes } of ranks) {
    const equal = (
      name: string,
      figures: { readonly predicted: number; readonly actual: number },
      counted: number,
    ) =>
      t.strictSame(
        { ...figures, counted },
        { predicted: counted, actual: counted, counted },
        `${name} of rank ${rank}`,
      );
    equal("memory", peakBytes, allocated[rank]!);
    equal("counts", sentBytes.counts, traffic[rank]!.counts);
    equal("dispatch", sentBytes.dispatch, traffic[rank]!.dispatch);
    equal("combine", sentBytes.combine, traffic[rank]!.combine);
    const staged = where.sharing === "separate" && plan.ranks > 1 &&
      opened[0]!.kind === "gpu";
    t.equal(stagingBytes.actual > 0, staged, "staging only between GPUs");
    t.equal(onRank(plan.peakBytes, rank), allocated[rank], "predicted peak");
  }
  const moved = traffic.reduce((n, { dispatch }) => n + dispatch, 0);
  t.equal(moved > 0, plan.ranks > 1, "several ranks exchange rows");
}

const CASES = [
  await checkpointCase("mixtral-6e", { experts: 6, embed: 48 }),
  await checkpointCase("demo-lm", { experts: 8, embed: 128 }),
  await layerCase(),
];

for (const { target, skip } of TARGETS) {
  // A software GPU is slow to compile kernels; one checkpoint covers exchanges between GPUs.
  const cases = target === "gpu" && gpuIsSoftware
    ? CASES.filter(({ name }) => name === "mixtral-6e")
    : CASES;
  for (const run of cases) {
    for (const mesh of inTurn(MESHES, 2)) {
      if (target === "gpu" && gpuIsSoftware && mesh.tp) continue;
      for (const sharing of ["shared", "separate"] as const) {
        if (sharing === "separate" && (mesh.ep === 1 || mesh.tp)) continue;
        const title = `${run.name}, ${JSON.stringify(mesh)}, ${sharing}`;
        t.test(
          `${title}, on ${target}`,
          { skip },
          (t) => compare(t, run, mesh, { target, sharing }),
        );
      }
    }
  }
}
