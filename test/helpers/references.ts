/** Recorded references of published implementations, on every mesh, alone and in a batch: the right values, and the same bits. */
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
import { slicePacked } from "../../engine/packing.ts";
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

/** Recordings of a prompt that outputs of the same names are held against. */
const OUTPUT = /\.(logits|router_logits|topk_idx)$/;

const withoutNative = await whyNotNative();
if (withoutNative !== undefined) {
  t.comment(`No mesh runs on the native CPU device: ${withoutNative}`);
}

/**
 * Both kinds of device; each gives its own bits. On the CPU, some meshes run compiled C, which has to give the bits of the
 * first, which runs WebAssembly.
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
  /** Greedy tokens, as far as no tie decides them. */
  readonly generated: number[][];
  readonly reference: Tensors;
  /** Choices that are given in one order and recorded in that of their weights: those of layers that route by token id. */
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

/** Rows with their numbers in ascending order. */
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

/** Row `row` of a padded output, without its padding. */
function rowOf(outputs: Tensors, name: string, row: number, length: number) {
  const { shape, data } = outputs[name]!;
  const [, columns = 0, width = 0] = shape;
  const from = row * columns * width;
  return data.slice(from, from + length * width);
}

/** Where two lists of numbers differ first. To compare them by tap takes longer than to run the model. */
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

/** Meshes whose ranks share one device, and meshes whose ranks have devices of their own. */
export interface Meshes {
  /** Those of shared devices that run compiled C. Default: a quarter of them, so that four checkpoints have all. */
  readonly native?: readonly string[];
  readonly shared: readonly string[];
  readonly separate: readonly string[];
  /** Also on a shared device, but only the batch, without each prompt alone and without tokens. */
  readonly batch?: readonly string[];
}

/** Heads, hidden elements and vocabulary over `tp`, alone and with tokens and experts over other axes. */
export const TENSOR_PARALLEL: readonly string[] = [
  ...["tp=2", "tp=4", "tp=2,ep=2", "dp=2,tp=2", "dp=2,tp=2,ep=2"],
];

/**
 * Meshes of a published family: one rank, unequal numbers of experts, and by `SEED` one of those with tp, and one of
 * ranks on separate devices and of pairs of axes for the batch. A checkpoint of test/end_to_end/references.test.ts runs
 * every mesh of these axes. The kernels of a new mesh take a C compiler ten seconds, so that compiled C rotates too.
 */
function familyMeshes(i: number): Meshes {
  const turn = (n: number) => isInTurn(i + n, 3);
  const axes = ["tp=4", "tp=2", "dp=2,tp=2,ep=2"].filter((_, n) => turn(n));
  return {
    shared: ["ep=1", "ep=3", ...axes],
    separate: turn(0) ? ["ep=4"] : [],
    batch: ["tp=2,ep=2", "dp=2,tp=2"].filter((_, n) => turn(n + 1)),
    // 3 and 4 have no common factor, so compiled C runs each mesh.
    native: isInTurn(i, 4) ? ["ep=3"] : isInTurn(i + 2, 4) ? axes : [],
  };
}

/** Meshes in rotation: each family that takes turns runs one of them, besides `ep=1`. */
const TURNS = ["ep=2", "ep=3", "ep=4", "dp=2,ep=2", "tp=2,ep=2"];

/**
 * As `testReferences`, for families whose parts are tested with others. By `SEED`, half of them run one rank and one other
 * mesh; one of six families runs compiled C there, and one of twelve a software GPU.
 */
export function testInTurns(names: readonly string[]): void {
  for (const [i, name] of names.entries()) {
    if (process.env["TURNS"] === "all") {
      testOnAll(name);
      continue;
    }
    if (!isInTurn(i, 2)) continue;
    const mesh = TURNS[(Math.abs(SEED) + i) % TURNS.length]!;
    testCheckpoint(
      name,
      {
        shared: ["ep=1", mesh],
        separate: [],
        native: isInTurn(i, 6) ? [mesh] : [],
      },
      isInTurn(i + 2, 12) ? { shared: [mesh], separate: [] } : undefined,
    );
  }
}

/** As `testReferences`, for published families. By `SEED`, a fifth of them runs on a software GPU. */
export function testFamilies(names: readonly string[]): void {
  for (const [i, name] of names.entries()) {
    testCheckpoint(
      name,
      familyMeshes(i),
      isInTurn(i, 5) ? { shared: ["ep=3"], separate: [] } : undefined,
    );
  }
}

/** Tests a checkpoint on all devices. `software`: meshes of a software GPU. */
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

/** Number of calls of `nextQuarter`. */
let quarters = 0;

/** Returns the next quarter of a list, whose first index follows `INNER_SEED`: the list may follow `SEED`. */
function nextQuarter(list: readonly string[]): readonly string[] {
  const count = Math.max(1, Math.floor(list.length / 4));
  const first = INNER_SEED + count * quarters++;
  return Array.from(
    { length: count },
    (_, i) => list[(first + i) % list.length]!,
  );
}

/** A family on all meshes of turns and all devices: WebAssembly, compiled C, a GPU or a software GPU. */
function testOnAll(name: string): void {
  const shared = ["ep=1", ...TURNS];
  for (const device of DEVICES) {
    for (const native of device.software ? [[]] : [[], shared]) {
      testReference(name, { shared, separate: [], native }, device);
    }
  }
}

/**
 * Hold checkpoints against what was recorded of them, on every mesh and kind of device; on four ranks also on devices of
 * their own.
 *
 * Every mesh has to give the bits of the first one, so that values are compared with recordings, and run to run, on the
 * first one only: on the others it would be the same comparison of the same bytes. A prompt alone runs another number of
 * rows than in the batch; what a mesh adds to that is how these rows fall on ranks. All prompts run alone on one rank,
 * where nothing is exchanged, on the mesh whose ranks have unequal shares of the experts, and on devices of their own;
 * on the other meshes the first one does. Alone, tokens are generated from all prompts on the uneven mesh.
 *
 * Where the processor stands in for a GPU, it runs the meshes of `software` only, because each mesh has kernels of its
 * own, which differ from those of another by constants; and devices of ranks of their own for one checkpoint, because
 * each compiles all kernels. It generates a few tokens there, and from one prompt alone: each takes as many launches as the
 * one before, and all are generated on the CPU device. What a mesh makes of a plan is held on the CPU device, and all meshes on a GPU where there is
 * one.
 */
export function testReferences(
  names: readonly string[],
  meshes: Meshes,
  software: Meshes,
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
          const uneven = loaded.decoder.experts % 3 === 0 ? "ep=4" : "ep=3";
          const setup = {
            first: bits.isEmpty,
            uneven: mesh === uneven && sharing === "shared",
            separate: sharing === "separate",
            software: device.software,
          };
          if (meshes.batch?.includes(mesh)) {
            bits.hold(t, "the batch", await runFresh(loaded, recorded.prompts));
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

/** What is peculiar about a mesh. */
interface Peculiar {
  readonly first: boolean;
  readonly uneven: boolean;
  readonly separate: boolean;
  readonly software: boolean;
}

/** Outputs by what they are of; those of the first mesh are the ones that others must give. */
class SameBits {
  readonly #digests = new Map<string, string>();

  get isEmpty(): boolean {
    return this.#digests.size === 0;
  }

  /** Fails where outputs are not those that were given first. */
  hold(t: Test, what: string, outputs: Tensors): void {
    const found = digest(outputs);
    const wanted = this.#digests.get(what) ?? found;
    this.#digests.set(what, wanted);
    t.equal(found, wanted, `${what} has the bits of the first mesh`);
  }
}

async function testOutputs(
  t: Test,
  loaded: Loaded,
  { recorded, bits, setup }: {
    readonly recorded: Recorded;
    readonly bits: SameBits;
    readonly setup: Peculiar;
  },
): Promise<void> {
  const { prompts, generated, reference, unordered } = recorded;
  const { first, uneven, separate } = setup;
  const batch = await runFresh(loaded, prompts);
  bits.hold(t, "the batch", batch);
  if (first) bits.hold(t, "the batch", await runFresh(loaded, prompts));
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
        `${output} of prompt ${i} alone and in the batch`,
      );
    }
  }
  if (first) await testPieces(t, loaded, { batch, prompts });
  if (!("p0.generated_logits" in reference)) return;
  const whole = await runFresh(
    loaded,
    prompts.map((prompt, i) => [...prompt, ...generated[i]!.slice(0, -1)]),
  );
  bits.hold(t, "what follows", whole);
  for (const [i, { length }] of prompts.entries()) {
    if (first) compareLater(t, whole, { reference, i, length });
  }
}

/** Prompts fed in pieces give the bits that they give at once. */
async function testPieces(
  t: Test,
  { session, decoder }: Loaded,
  { batch, prompts }: {
    readonly batch: Tensors;
    readonly prompts: readonly (readonly number[])[];
  },
): Promise<void> {
  session.reset();
  const packed = packPrompts(prompts);
  const ends = [1, 4, 11, 12, 29, packed.ids.length];
  let from = 0;
  for (const to of ends) {
    const piece = slicePacked(packed, from, to);
    const outputs = await decoder.outputs(piece);
    for (const [name, { shape, data }] of Object.entries(batch)) {
      const width = shape[2] ?? 1;
      const whole = Array.from(
        piece.cell,
        (cell) => [...data.subarray(cell * width, (cell + 1) * width)],
      );
      const at = firstDifference(outputs[name]!.data, whole.flat());
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
    readonly setup: Peculiar;
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

/** The logits that each recorded token was chosen by: those from the prompt's last token on. */
function compareLater(
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
  t.ok(error < TOLERANCE, `logits of what follows prompt ${i}: ${error}`);
}
