// fairscale's MOELayer with Top2Gate, recorded on 1, 2 and 4 processes: a routing group per process, on one rank and on as many as were recorded.
import path from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import {
  add,
  combine,
  dispatch,
  dot,
  maximum,
  type Model,
  model,
  route,
} from "../../compiler/mod.ts";
import {
  type AdapterChoice,
  type HostTensor,
  openTarget,
  readTensors,
  runOpened,
  type Tensors,
} from "../../engine/mod.ts";
import {
  files,
  meshOf,
  relativeError,
  skipWithoutAdapter,
} from "../helpers/checkpoints.ts";
import { readRaw, temporaryFolder, writeRaw } from "../helpers/cli.ts";

const CASES = [
  { name: "w1-e4", world: 1, noisy: false },
  { name: "w2-e4", world: 2, noisy: false },
  { name: "w2-e4-noise", world: 2, noisy: true },
  { name: "w4-e4", world: 4, noisy: false },
  { name: "w4-e8", world: 4, noisy: false },
  { name: "w4-e8-noise", world: 4, noisy: true },
];

const DEVICES = [
  { title: "on the CPU", adapter: "cpu", skip: false },
  { title: "on a GPU", adapter: [0], skip: await skipWithoutAdapter() },
] as const;

interface Sizes {
  readonly world: number;
  readonly tokens: number;
  readonly experts: number;
  readonly embed: number;
  readonly hidden: number;
}

function fairscaleLayer(sizes: Sizes, noisy: boolean): Model {
  return model({
    group: sizes.world,
    token: sizes.tokens,
    expert: sizes.experts,
    embed: sizes.embed,
    hidden: sizes.hidden,
  }, (m) => {
    const x = m.input("x", "group token embed");
    const logits = dot(x, m.param("gate.weight", "expert embed"), "embed");
    const noise = noisy
      ? { noise: m.input("noise", "group token expert") }
      : {};
    const routing = route(logits, {
      ...{ over: "expert", topK: 2, preset: "fairscale.top2" },
      group: "group",
      ...noise,
    });
    const sent = dispatch(x, routing);
    const up = add(
      dot(
        sent,
        m.param("expert{expert}.fc1.weight", "expert hidden embed"),
        "embed",
      ),
      m.param("expert{expert}.fc1.bias", "expert hidden"),
    );
    const down = add(
      dot(
        maximum(up, 0),
        m.param("expert{expert}.fc2.weight", "expert embed hidden"),
        "hidden",
      ),
      m.param("expert{expert}.fc2.bias", "expert embed"),
    );
    const { index, weight, slot } = routing;
    return { y: combine(down, routing), index, weight, slot };
  });
}

/** One tensor of all recorded ranks, the rank as its first axis. */
function stacked(
  recorded: Tensors,
  part: { readonly name: string; readonly world: number },
  shape: readonly number[],
): HostTensor {
  const parts = Array.from(
    { length: part.world },
    (_, rank) => [...recorded[`rank${rank}.${part.name}`]!.data],
  );
  return {
    dtype: "f32",
    shape: [part.world, ...shape],
    data: Float32Array.from(parts.flat()),
  };
}

/** fairscale's `[token, expert, slot]` weights from choices. */
function combineWeights(
  found: Tensors,
  rank: number,
  shape: readonly number[],
): Float32Array {
  const [tokens = 0, experts = 0, capacity = 0] = shape;
  const weights = new Float32Array(tokens * experts * capacity);
  for (let i = 0; i < 2 * tokens; i++) {
    const at = 2 * tokens * rank + i;
    const slot = found["slot"]!.data[at]!;
    if (slot < 0) continue;
    const expert = found["index"]!.data[at]!;
    const row = Math.floor(i / 2) * experts + expert;
    weights[row * capacity + slot] = found["weight"]!.data[at]!;
  }
  return weights;
}

for (const { title, adapter, skip } of DEVICES) {
  for (const { name, world, noisy } of CASES) {
    t.test(`${name} ${title}`, { skip }, async (t) => {
      const file = fileURLToPath(
        new URL(`../references/fairscale/${name}.safetensors`, import.meta.url),
      );
      const weights = path.join(temporaryFolder(t), "weights.safetensors");
      const raw = Object.entries(await readRaw(file)).filter(([key]) =>
        /^(gate|expert\d+\.fc\d)\.(weight|bias)$/.test(key)
      );
      await writeRaw(weights, Object.fromEntries(raw));
      const recorded = await readTensors(file, files);
      const [experts = 0, embed = 0] = recorded["gate.weight"]!.shape;
      const hidden = recorded["expert0.fc1.bias"]!.shape[0]!;
      const tokens = recorded["rank0.gumbel"]!.shape[0]!;
      const built = fairscaleLayer(
        { world, tokens, experts, embed, hidden },
        noisy,
      );
      const inputs: Tensors = {
        x: stacked(recorded, { name: "input", world }, [tokens, embed]),
        ...noisy
          ? {
            noise: stacked(
              recorded,
              { name: "gumbel", world },
              [tokens, experts],
            ),
          }
          : {},
      };
      let bits: Tensors | undefined;
      for (const ranks of new Set([1, world])) {
        const found = await run(built, { weights, inputs, ranks, adapter });
        for (let rank = 0; rank < world; rank++) {
          const y = found["y"]!.data.slice(
            rank * tokens * embed,
            (rank + 1) * tokens * embed,
          );
          const output = relativeError(y, recorded[`rank${rank}.output`]!.data);
          t.ok(output < 1e-5, `output of rank ${rank}: ${output}`);
          const wanted = recorded[`rank${rank}.combine_weights`]!;
          const slots = combineWeights(found, rank, wanted.shape);
          t.strictSame(
            [...slots].map((w) => w !== 0),
            [...wanted.data].map((w) => w !== 0),
            `slots of rank ${rank}`,
          );
          const error = relativeError(slots, wanted.data);
          t.ok(error < 1e-5, `weights of rank ${rank}: ${error}`);
        }
        bits ??= found;
        t.strictSame(found, bits, `the bits of one rank on ${ranks}`);
      }
    });
  }
}

async function run(
  built: Model,
  options: {
    readonly weights: string;
    readonly inputs: Tensors;
    readonly ranks: number;
    readonly adapter: AdapterChoice;
  },
): Promise<Tensors> {
  const { weights, inputs, ranks, adapter } = options;
  const opened = await openTarget({ kind: "model", model: built }, files, {
    ...{ sharing: "shared", adapter, weights },
    mesh: meshOf(`ep=${ranks}`),
  });
  try {
    return await runOpened(opened, inputs);
  } finally {
    await opened.close();
  }
}
