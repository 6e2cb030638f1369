/**
 * Compares checkpoints with recorded references of published implementations on all meshes, alone and in a batch, with
 * equal bits.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import process from "node:process";
import t, { type Test } from "tap";
import {
  type Decoder,
  generate,
  packPrompts,
  runOpened,
  type Tensors,
  writeSafetensors,
} from "../../engine/mod.ts";
import { slicePacked } from "../../engine/generation/packing.ts";
import { whyNotNative } from "../../runtime/native/mod.ts";
import {
  checkpointFolder,
  loadCheckpoint,
  type Loaded,
  padBatch,
  readReference,
  relativeError,
} from "./checkpoints.ts";
import { gpuIsSoftware, skipUnasked, skipWithoutGpu } from "./needs.ts";
import { checkPredictions } from "./predictions.ts";
import { INNER_SEED, isInTurn, repeatWith, SEED } from "./seed.ts";

const TOLERANCE = 1e-4;

/** Recordings of a prompt that are compared with outputs of the same names. */
const OUTPUT = /\.(logits|router_logits|topk_idx)$/;

const withoutNative = await whyNotNative();
if (withoutNative !== undefined) {
  t.comment(`No mesh runs on the native CPU device: ${withoutNative}`);
}

/**
 * CPU and GPU devices, whose bits differ. On the CPU, some meshes run compiled C, which must match the bits of
 * WebAssembly on the first mesh.
 */
const DEVICES = [
  {
    title: "on the CPU",
    adapter: "cpu",
    second: withoutNative === undefined ? "native" : "cpu",
    skip: skipUnasked("cpu"),
    software: false,
  },
  {
    title: "on a GPU",
    adapter: [0],
    second: [0],
    skip: skipWithoutGpu,
    software: gpuIsSoftware,
  },
] as const;

interface Recorded {
  readonly prompts: number[][];
  /** Greedy tokens up to the first near tie. */
  readonly generated: number[][];
  readonly reference: Tensors;
  /** Outputs of layers that route by token id: recorded in order of weights, computed in the order of the table. */
  readonly unordered: ReadonlySet<string>;
}

async function readRecorded(name: string): Promise<Recorded> {
  const reference = await readReference(name);
  const prompts: number[][] = [];
  const generated: number[][] = [];
  for (let i = 0; `p${i}.input_ids` in reference; i++) {
    prompts.push([...reference[`p${i}.input_ids`]!.data]);
    generated.push([...reference[`p${i}.generated`]!.data]);
  }
  if (name === "demo-lm") {
    const sure = JSON.parse(readFileSync(
      new URL(
        "../references/demo-lm/reference_continuations.json",
        import.meta.url,
      ),
      "utf8",
    )) as { first_step_with_margin_below_0_005: number }[];
    sure.forEach((entry, i) => {
      generated[i]!.length = entry.first_step_with_margin_below_0_005;
    });
  }
  const { mlp_layer_types: kinds = [] } = JSON.parse(
    readFileSync(`${checkpointFolder(name)}/config.json`, "utf8"),
  ) as { readonly mlp_layer_types?: readonly string[] };
  const unordered = new Set(
    kinds.flatMap((kind, layer) =>
      kind === "hash_moe" ? [`layer${layer}.topk_idx`] : []
    ),
  );
  return { prompts, generated, reference, unordered };
}

/** Returns rows with ascending values. */
function sortedRows(rows: ArrayLike<number>, width: number): number[] {
  return Array.from(
    { length: rows.length / width },
    (_, row) =>
      Array.from({ length: width }, (_, i) => rows[row * width + i]!)
        .sort((a, b) => a - b),
  ).flat();
}

async function greedyTokens(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
  count: number,
): Promise<(readonly number[])[]> {
  const { sequences } = await generate(decoder, prompts, {
    maxNewTokens: count,
    stop: new Set(),
  });
  return sequences.map(({ tokens }) => tokens);
}

function digest(outputs: Tensors): string {
  return createHash("sha256").update(writeSafetensors(outputs)).digest("hex");
}

/** Row `row` of a padded output [sequence, token, width], without padding. */
function rowOf(outputs: Tensors, name: string, row: number, length: number) {
  const { shape, data } = outputs[name]!;
  const [, columns = 0, width = 0] = shape;
  const from = row * columns * width;
  return data.slice(from, from + length * width);
}

/** Returns the index of the first difference. Comparison by tap takes longer than running the model. */
function firstDifference(
  found: ArrayLike<number>,
  wanted: ArrayLike<number>,
): number | undefined {
  for (let i = 0; i < Math.max(found.length, wanted.length); i++) {
    if (!Object.is(found[i], wanted[i])) return i;
  }
  return undefined;
}

async function runFresh(
  loaded: Loaded,
  prompts: readonly (readonly number[])[],
): Promise<Tensors> {
  loaded.session.reset();
  return await runOpened(loaded, padBatch(prompts));
}

/** Meshes with ranks on one shared device, and on separate devices. */
export interface Meshes {
  /**
   * Meshes on shared devices that run compiled C. Default: a quarter of them, in rotation over checkpoints and runs.
   */
  readonly native?: readonly string[];
  readonly shared: readonly string[];
  readonly separate: readonly string[];
  /** Meshes on a shared device that run only the batch, without single prompts and tokens. */
  readonly batch?: readonly string[];
}

/**
 * Meshes that shard heads, hidden elements and vocabulary over `tp`, alone and with other axes for tokens and experts.
 */
export const TENSOR_PARALLEL: readonly string[] = [
  ...["tp=2", "tp=4", "tp=2,ep=2", "dp=2,tp=2", "dp=2,tp=2,ep=2"],
];

/**
 * Meshes of a published family: one rank, and by `SEED` either unequal numbers of experts and separate devices, or one
 * mesh with tp and two axes for the batch. Checkpoints of test/end_to_end/references.test.ts run all meshes of these
 * axes. Compiling the kernels of a new mesh as C takes ten seconds, so compiled C rotates too.
 */
function familyMeshes(i: number): Meshes {
  const runs = (n: number) => isInTurn(i + n, 3);
  const axes = ["tp=4", "tp=2", "dp=2,tp=2,ep=2"].filter((_, n) => runs(n));
  const [uneven, others] = [isInTurn(i, 2), isInTurn(i + 1, 2)];
  return {
    shared: ["ep=1", ...uneven ? ["ep=3"] : [], ...others ? axes : []],
    separate: uneven && runs(0) ? ["ep=4"] : [],
    batch: ["tp=2,ep=2", "dp=2,tp=2"].filter((_, n) => others && runs(n + 1)),
    // 3 and 4 have no common factor, so compiled C runs each mesh.
    native: [
      ...isInTurn(i, 4) ? ["ep=3"] : [],
      ...isInTurn(i + 1, 4) ? axes : [],
    ],
  };
}

/** Meshes in rotation: each family of `testInTurns` runs one of them, besides `ep=1`. */
const ROTATED = ["ep=2", "ep=3", "ep=4", "dp=2,ep=2", "tp=2,ep=2"];

/**
 * As `testReferences`, for families whose parts other tests cover. By `SEED`, a quarter of them run one rank and one
 * other mesh; one of eight runs compiled C there, and one of sixteen a software GPU.
 */
export function testInTurns(names: readonly string[]): void {
  for (const [i, name] of names.entries()) {
    if (process.env["TURNS"] === "all") {
      testOnAll(name);
      continue;
    }
    if (!isInTurn(i, 4)) continue;
    const mesh = ROTATED[(Math.abs(SEED) + i) % ROTATED.length]!;
    testCheckpoint(
      name,
      {
        shared: ["ep=1", mesh],
        separate: [],
        native: isInTurn(i, 8) ? [mesh] : [],
      },
      isInTurn(i + 4, 16) ? { shared: [mesh], separate: [] } : undefined,
    );
  }
}

/** As `testReferences`, for published families. By `SEED`, a fifth of them also run on a software GPU. */
export function testFamilies(names: readonly string[]): void {
  for (const [i, name] of names.entries()) {
    testCheckpoint(
      name,
      familyMeshes(i),
      isInTurn(i, 5) ? { shared: ["ep=3"], separate: [] } : undefined,
    );
  }
}

/** Tests a checkpoint on all devices. `software`: its meshes on a software GPU. Default: none. */
function testCheckpoint(
  name: string,
  meshes: Meshes,
  software: Meshes | undefined,
): void {
  for (const device of DEVICES) {
    const on = device.software ? software : meshes;
    if (on) testReference(name, on, device);
    else t.comment(`${name} does not run on a software GPU: ${repeatWith()}`);
  }
}

let quarters = 0;

/** Returns the next quarter of a list. The first one follows `INNER_SEED`, because the list may follow `SEED`. */
function nextQuarter(list: readonly string[]): readonly string[] {
  const count = Math.max(1, Math.floor(list.length / 4));
  const first = INNER_SEED + count * quarters++;
  return Array.from(
    { length: count },
    (_, i) => list[(first + i) % list.length]!,
  );
}

/** Tests a family on all rotated meshes and all devices: WebAssembly, compiled C, a GPU or a software GPU. */
function testOnAll(name: string): void {
  const shared = ["ep=1", ...ROTATED];
  for (const device of DEVICES) {
    for (const native of device.software ? [[]] : [[], shared]) {
      testReference(name, { shared, separate: [], native }, device);
    }
  }
}

/**
 * Compares checkpoints with recorded references on all meshes and kinds of device, and on four ranks also on separate
 * devices.
 *
 * All meshes must compute the bits of the first one, so values are compared with recordings, and runs with each other,
 * only on the first. A single prompt has another row count than the batch; a mesh only changes the ranks of these rows.
 * All single prompts run on one rank, where nothing is exchanged, on the mesh with unequal numbers of experts, and on
 * separate devices; other meshes run the first prompt. The uneven mesh generates tokens from all single prompts.
 *
 * A software GPU runs only the meshes of `software`, because each mesh has kernels that differ by constants, and
 * separate devices for one checkpoint, because each device compiles all kernels. It generates four tokens from the
 * batch and from one prompt, because each token takes as many launches as the previous one. The CPU device generates
 * all tokens and runs all meshes, as does a hardware GPU.
 */
export function testReferences(
  names: readonly string[],
  meshes: Meshes,
  software: Meshes | undefined,
): void {
  for (const name of names) {
    const native = meshes.native ?? nextQuarter(meshes.shared);
    testCheckpoint(name, { ...meshes, native }, software);
  }
}

function testReference(
  name: string,
  meshes: Meshes,
  { title, skip, ...device }:
    & Pick<
      (typeof DEVICES)[number],
      "title" | "adapter" | "second" | "software"
    >
    & { readonly skip: string | boolean },
): void {
  t.test(`${name} ${title}, on every mesh`, { skip }, async (t) => {
    const recorded = await readRecorded(name);
    const bits = new SameBits();
    const adapterOf = (mesh: string) =>
      meshes.native?.includes(mesh) ? device.second : device.adapter;
    for (
      const [mesh, sharing, adapter] of [
        ...meshes.shared.map((mesh) =>
          [mesh, "shared", adapterOf(mesh)] as const
        ),
        ...meshes.separate.map((mesh) =>
          [mesh, "separate", device.adapter] as const
        ),
        ...(meshes.batch ?? []).map((mesh) =>
          [mesh, "shared", adapterOf(mesh)] as const
        ),
      ]
    ) {
      const on = adapter === "native" ? `, compiled C (${repeatWith()})` : "";
      await t.test(`${mesh}, ${sharing} devices${on}`, async (t) => {
        const loaded = await loadCheckpoint(name, {
          mesh,
          sharing,
          adapter,
        });
        try {
          const uneven = loaded.decoder.shape.experts % 3 === 0
            ? "ep=4"
            : "ep=3";
          const setup = {
            first: bits.isEmpty,
            uneven: mesh === uneven && sharing === "shared",
            separate: sharing === "separate",
            software: device.software,
          };
          if (meshes.batch?.includes(mesh)) {
            bits.check(t, "batch", await runFresh(loaded, recorded.prompts));
          } else {
            await testOutputs(t, loaded, { recorded, bits, setup });
            await testTokens(t, loaded, { recorded, setup });
          }
          checkPredictions(t, loaded.session);
        } finally {
          await loaded.close();
        }
      });
    }
  });
}

/** Properties of a mesh that select its tests. */
interface MeshTraits {
  readonly first: boolean;
  readonly uneven: boolean;
  readonly separate: boolean;
  readonly software: boolean;
}

/** Digests of outputs, by name. Those of the first mesh are expected on all others. */
class SameBits {
  readonly #digests = new Map<string, string>();

  get isEmpty(): boolean {
    return this.#digests.size === 0;
  }

  /** Fails unless outputs equal those of the first call with this name. */
  check(t: Test, name: string, outputs: Tensors): void {
    const found = digest(outputs);
    const wanted = this.#digests.get(name) ?? found;
    this.#digests.set(name, wanted);
    t.equal(found, wanted, `${name}: bits of the first mesh`);
  }
}

async function testOutputs(
  t: Test,
  loaded: Loaded,
  { recorded, bits, setup }: {
    readonly recorded: Recorded;
    readonly bits: SameBits;
    readonly setup: MeshTraits;
  },
): Promise<void> {
  const { prompts, generated, reference, unordered } = recorded;
  const { first, uneven, separate } = setup;
  const batch = await runFresh(loaded, prompts);
  bits.check(t, "batch", batch);
  if (first) bits.check(t, "batch", await runFresh(loaded, prompts));
  const alone = first || uneven || separate ? prompts : prompts.slice(0, 1);
  for (const [i, prompt] of alone.entries()) {
    const { length } = prompt;
    if (first) compare(t, batch, { reference, i, length, unordered });
    const outputs = await runFresh(loaded, [prompt]);
    for (const output of Object.keys(batch)) {
      t.equal(
        firstDifference(
          rowOf(batch, output, i, length),
          outputs[output]!.data,
        ),
        undefined,
        `${output} of prompt ${i}: alone and in the batch`,
      );
    }
  }
  if (first) await testChunkedPrefill(t, loaded, { batch, prompts });
  if (!("p0.generated_logits" in reference)) return;
  const continued = await runFresh(
    loaded,
    prompts.map((prompt, i) => [...prompt, ...generated[i]!.slice(0, -1)]),
  );
  bits.check(t, "continuation", continued);
  for (const [i, { length }] of prompts.entries()) {
    if (first) compareContinuation(t, continued, { reference, i, length });
  }
}

/** Chunked prefill computes the bits of prefill in one step. */
async function testChunkedPrefill(
  t: Test,
  { session, decoder }: Loaded,
  { batch, prompts }: {
    readonly batch: Tensors;
    readonly prompts: readonly (readonly number[])[];
  },
): Promise<void> {
  session.reset();
  const packed = packPrompts(prompts);
  const { length } = packed.ids;
  // No piece has more tokens than a step.
  const ends = [...[1, 4, 11, 12, 29, 129].filter((n) => n < length), length];
  let from = 0;
  for (const to of ends) {
    const piece = slicePacked(packed, from, to);
    const outputs = await decoder.outputs(piece);
    for (const [name, { shape, data }] of Object.entries(batch)) {
      const width = shape[2] ?? 1;
      const wanted = Array.from(
        piece.cell,
        (cell) => [...data.subarray(cell * width, (cell + 1) * width)],
      );
      const at = firstDifference(outputs[name]!.data, wanted.flat());
      t.equal(at, undefined, `${name} of tokens ${from} to ${to}`);
    }
    from = to;
  }
}

async function testTokens(
  t: Test,
  { session, decoder }: Loaded,
  { recorded, setup }: {
    readonly recorded: Recorded;
    readonly setup: MeshTraits;
  },
): Promise<void> {
  const { prompts, generated } = recorded;
  const { uneven, software } = setup;
  const max = Math.max(...generated.map(({ length }) => length));
  const count = software ? Math.min(max, 4) : max;
  session.reset();
  const together = await greedyTokens(decoder, prompts, count);
  for (const [i, wanted] of generated.entries()) {
    t.strictSame(
      together[i]!.slice(0, wanted.length),
      wanted.slice(0, count),
      `tokens of prompt ${i} in the batch`,
    );
  }
  const single = uneven && !software ? prompts : prompts.slice(0, 1);
  for (const [i, prompt] of single.entries()) {
    session.reset();
    const [alone] = await greedyTokens(decoder, [prompt], count);
    t.strictSame(alone, together[i], `tokens of prompt ${i} alone`);
  }
}

function compare(
  t: Test,
  outputs: Tensors,
  part: {
    readonly reference: Tensors;
    readonly unordered: ReadonlySet<string>;
    readonly i: number;
    readonly length: number;
  },
): void {
  const { reference, unordered, i, length } = part;
  const recordings = Object.keys(reference).filter((name) =>
    name.startsWith(`p${i}.`) && OUTPUT.test(name)
  );
  for (const name of recordings) {
    const output = name.slice(`p${i}.`.length);
    const recorded = reference[name]!;
    if (outputs[output] === undefined) {
      t.fail(`${output} is an output`);
      continue;
    }
    const row = rowOf(outputs, output, i, length);
    if (unordered.has(output)) {
      const width = recorded.shape.at(-1)!;
      t.strictSame(
        sortedRows(row, width),
        sortedRows(recorded.data, width),
        `${output} of prompt ${i}`,
      );
    } else if (output.endsWith("topk_idx")) {
      t.strictSame([...row], [...recorded.data], `${output} of prompt ${i}`);
    } else {
      const error = relativeError(row, recorded.data);
      t.ok(error < TOLERANCE, `${output} of prompt ${i}: ${error}`);
    }
  }
  const { shape } = outputs["logits"]!;
  const last = rowOf(outputs, "logits", i, length).slice(-shape[2]!);
  const ids = reference[`p${i}.generated_top5_ids`]?.data.slice(0, 5);
  const best = reference[`p${i}.generated_top5_logits`]?.data.slice(0, 5);
  if (ids !== undefined && best !== undefined) {
    const found = Float32Array.from(ids, (id) => last[id]!);
    const error = relativeError(found, best);
    t.ok(error < TOLERANCE, `best next logits of prompt ${i}: ${error}`);
  }
  t.ok(ids ?? recordings.length > 0, `logits of prompt ${i} were recorded`);
}

/** Compares the logits of each recorded token: those from the prompt's last token on. */
function compareContinuation(
  t: Test,
  outputs: Tensors,
  part: { reference: Tensors; i: number; length: number },
): void {
  const { reference, i, length } = part;
  const recorded = reference[`p${i}.generated_logits`]!;
  const [count = 0, width = 0] = recorded.shape;
  const from = length - 1;
  const rows = rowOf(outputs, "logits", i, from + count).slice(from * width);
  const error = relativeError(rows, recorded.data);
  t.ok(error < TOLERANCE, `logits after prompt ${i}: ${error}`);
}
