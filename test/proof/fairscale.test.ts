// Recorded runs of fairscale's MOELayer with Top2Gate: outputs, slots and combine weights match on one rank and on the
// recorded rank count.
// needs: cpu, gpu
// rotates with: examples/fairscale.ts, compiler/kernels/routing/slots.ts
import t, { type Test } from "tap";
import { compile } from "../../compiler/mod.ts";
import { fairscale } from "../../examples/fairscale.ts";
import { readTensors } from "../helpers/read_tensors.ts";
import {
  bytesOf,
  type DeviceOptions,
  f32,
  fileSource,
  openSession,
  TARGETS,
  type Tensors,
} from "../helpers/sessions.ts";
import { gpuIsSoftware } from "../helpers/needs.ts";
import { inTurn, oneInTurn } from "../helpers/seed.ts";
import { openSafetensors } from "../../runtime/mod.ts";

const EMBED = 8;
const CAPACITY = 16;
const TOLERANCE = 1e-5;

const RECORDED = [
  { world: 1, experts: 4, noise: false },
  { world: 2, experts: 4, noise: false },
  { world: 2, experts: 4, noise: true },
  { world: 4, experts: 4, noise: false },
  { world: 4, experts: 8, noise: false },
  { world: 4, experts: 8, noise: true },
];

/** Experts sharded over `tp`, alone and with tokens and experts over other axes. */
const TENSOR_PARALLEL: readonly { readonly [axis: string]: number }[] = [
  { tp: 2 },
  { tp: 4 },
  { tp: 2, ep: 2 },
  { dp: 2, tp: 2 },
  { dp: 2, tp: 2, ep: 2 },
];

/** A recorded file, with the tensors of all ranks concatenated. */
interface Recording {
  readonly file: string;
  readonly world: number;
  readonly experts: number;
  readonly noise: boolean;
  /** Tokens per rank. */
  readonly tokens: number;
  all(name: string): number[];
}

function openRecording(
  { world, experts, noise }: typeof RECORDED[number],
): Recording {
  const name = `w${world}-e${experts}${noise ? "-noise" : ""}.safetensors`;
  const file = `fairscale/${name}`;
  const tensors = readTensors(file);
  const all = (name: string) =>
    Array.from({ length: world }, (_, rank) => tensors[`rank${rank}.${name}`]!)
      .flat();
  const tokens = all("input").length / EMBED / world;
  return { file, world, experts, noise, tokens, all };
}

async function run(
  recording: Recording,
  mesh: { readonly [axis: string]: number },
  devices: DeviceOptions,
): Promise<Tensors> {
  const { file, world, experts, noise, tokens, all } = recording;
  const model = fairscale({ groups: world, tokens, experts, noise });
  const plan = await compile(model, { mesh });
  const source = fileSource(`test/references/${file}`);
  const tensors = await openSafetensors([source]);
  const session = await openSession(plan, { ...devices, tensors });
  const gumbel = f32([world, tokens, experts], all("gumbel"));
  try {
    return await session.run("main", {
      input: f32([world, tokens, EMBED], all("input")),
      ...(noise ? { gumbel } : {}),
    });
  } finally {
    session.close();
  }
}

/** Returns the number of ranks of mesh axes. */
function ranksOf(
  mesh: { readonly [axis: string]: number },
  over: readonly string[],
): number {
  return over.reduce((n, axis) => n * (mesh[axis] ?? 1), 1);
}

/** Index of a choice in `[token, expert, slot]`. Undefined: it was dropped. */
function rowOf(outputs: Tensors, choice: number, experts: number) {
  const slot = outputs["slot"]!.data[choice]!;
  const expert = outputs["index"]!.data[choice]!;
  const token = choice >> 1;
  return slot < 0 ? undefined : (token * experts + expert) * CAPACITY + slot;
}

function compare(t: Test, outputs: Tensors, recording: Recording): void {
  const { experts, all } = recording;
  const { data } = outputs["output"]!;
  t.ok(difference(data, all("output")) <= TOLERANCE, "outputs");

  const mask = all("dispatch_mask");
  const taken = mask.map(() => 0);
  const weights = mask.map(() => 0);
  for (let choice = 0; choice < outputs["slot"]!.data.length; choice++) {
    const row = rowOf(outputs, choice, experts);
    if (row === undefined) continue;
    taken[row]!++;
    weights[row] = outputs["weight"]!.data[choice]!;
  }
  t.strictSame(taken, mask, "slots of choices");
  const wanted = all("combine_weights");
  t.ok(difference(weights, wanted) <= TOLERANCE, "combine weights");
}

function difference(
  found: ArrayLike<number>,
  wanted: ArrayLike<number>,
): number {
  if (found.length !== wanted.length) return Infinity;
  const differences = Array.from(wanted, (w, i) => Math.abs(w - found[i]!));
  return differences.every(Number.isFinite)
    ? Math.max(...differences)
    : Infinity;
}

for (const { target, skip } of TARGETS) {
  for (const recorded of RECORDED) {
    const recording = openRecording(recorded);
    t.test(`${recording.file} on ${target}`, { skip }, async (t) => {
      const { world } = recording;
      const one = await run(recording, {}, { target });
      compare(t, one, recording);
      const isSlow = target === "gpu" && gpuIsSoftware;
      const sharings = ["shared", "separate"] as const;
      for (const sharing of isSlow ? oneInTurn(sharings) : sharings) {
        if (world === 1) continue;
        const many = await run(recording, { ep: world }, { target, sharing });
        const title = `bytes on ${world} ${sharing} ranks`;
        t.equal(bytesOf(many), bytesOf(one), title);
      }
      for (const mesh of target === "cpu" ? inTurn(TENSOR_PARALLEL, 2) : []) {
        const groups = ranksOf(mesh, ["dp", "ep"]);
        if (world % groups !== 0) continue;
        const many = await run(recording, mesh, { target });
        const title = `bytes on ${JSON.stringify(mesh)}`;
        t.equal(bytesOf(many), bytesOf(one), title);
      }
    });
  }
}

t.test("the number of groups is fixed, sharded or not", async (t) => {
  const recording = openRecording({ world: 4, experts: 8, noise: false });
  const { world, experts, tokens, all } = recording;
  for (const mesh of [{}, { ep: 4 }, { ep: 2 }]) {
    const plan = await compile(
      fairscale({ groups: world, tokens, experts }),
      { mesh },
    );
    const source = fileSource(`test/references/${recording.file}`);
    const tensors = await openSafetensors([source]);
    const session = await openSession(plan, { target: "cpu", tensors });
    const three = all("input").slice(0, 3 * tokens * EMBED);
    await t.rejects(
      session.run("main", { input: f32([3, tokens, EMBED], three) }),
      {
        name: "DataError",
        message:
          "Cannot run program 'main': axis 'group' of the input 'input' has length 3. It must be 4",
      },
      JSON.stringify(mesh),
    );
    session.close();
  }
});

t.test("every recording drops choices", (t) => {
  for (const recorded of RECORDED) {
    const { file, world, tokens, all } = openRecording(recorded);
    const kept = all("dispatch_mask").reduce((n, x) => n + x, 0);
    t.ok(kept < 2 * world * tokens, file);
  }
  t.end();
});
