// Each rank stores only its own experts: bytes that the loader reads, lengths of buffers, and equal results if all
// other experts are NaN.
// needs: cpu, gpu
import { stackedOn } from "../../spec/axis_parts.ts";
import t, { type Test } from "tap";
import {
  type Device,
  type DeviceBuffer,
  type FileSource,
  type HostTensor,
  openSafetensors,
  RankMemory,
  readTensor,
  type TensorDirectory,
  writeSafetensors,
} from "../../runtime/mod.ts";
import { loadWeights } from "../../runtime/weights/load.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import {
  bytesOf,
  compileCheckpoint,
  openDevices,
  openSession,
  openWeights,
  packedPrompts,
  type Target,
  TARGETS,
  watchDevice,
} from "../helpers/sessions.ts";
import { createNullDevice } from "../helpers/null_device.ts";

/** Six experts: with four ranks, two ranks have two experts and two have one. */
const CHECKPOINT = "mixtral-6e";
/** Checkpoints whose reads and buffer lengths are counted. The second is stored in 16 bits. */
const COUNTED = [CHECKPOINT, "demo-lm"];
const MESHES = [{ ep: 4 }, { dp: 2, ep: 2 }];
const EXPERT = /\.experts\.(\d+)\./;

/** Returns the global ids of a rank's experts. */
function ownedBy(plan: Plan, rank: number): readonly number[] {
  const stacked = plan.weights.find(({ stack }) => stack !== undefined)!;
  return stackedOn(plan, stacked, rank);
}

/** Whether a tensor is of an expert in `owned`, or of no expert. */
function isOwned(name: string, owned: readonly number[]): boolean {
  const expert = EXPERT.exec(name)?.[1];
  return expert === undefined || owned.includes(Number(expert));
}

/** Returns the checkpoint with NaN in all experts that are not `owned`. */
async function withoutOthers(
  tensors: TensorDirectory,
  owned: readonly number[],
): Promise<TensorDirectory> {
  const result: { [name: string]: HostTensor } = {};
  for (const [name, entry] of tensors) {
    const tensor = await readTensor(entry);
    if (!isOwned(name, owned)) tensor.data.fill(NaN);
    result[name] = tensor;
  }
  const bytes = writeSafetensors(result);
  return await openSafetensors([{
    name: "without others",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  }]);
}

/** Runs with weights that each rank loads from a file with NaN in all experts of other ranks. */
async function fillOthers(
  t: Test,
  mesh: { readonly [axis: string]: number },
  target: Target,
): Promise<void> {
  const plan = await compileCheckpoint(CHECKPOINT, { mesh });
  const tensors = await openWeights(CHECKPOINT);
  const inputs = packedPrompts([9, 7, 5, 3]);
  const buffers = new Map<string, DeviceBuffer>();
  const [device] = await openDevices(plan, { target });
  const watched = watchDevice(device!, {
    createBuffer(bytes, label) {
      const buffer = device!.createBuffer(bytes, label);
      buffers.set(label, buffer);
      return buffer;
    },
  });
  const session = await openSession(plan, {
    devices: new Array<Device>(plan.ranks).fill(watched),
    tensors,
  });
  const wanted = bytesOf(await session.run("main", inputs));
  session.reset();
  const weightOf = (rank: number, buffer: string) =>
    buffers.get(
      `rank ${rank} allocation ${plan.buffers[buffer]!.allocation}`,
    )!;

  for (let rank = 0; rank < plan.ranks; rank++) {
    for (const { buffer } of plan.weights) {
      const { bytes } = weightOf(rank, buffer);
      device!.write(weightOf(rank, buffer), 0, new Uint8Array(bytes).fill(255));
    }
  }
  const overwritten = bytesOf(await session.run("main", inputs));
  t.not(overwritten, wanted, "results depend on weights");
  session.reset();

  for (let rank = 0; rank < plan.ranks; rank++) {
    const memory = new RankMemory(plan, device!, rank);
    const file = await withoutOthers(tensors, ownedBy(plan, rank));
    await loadWeights(plan, [memory], file);
    for (const { buffer } of plan.weights) {
      const from = memory.buffer(buffer);
      device!.copy(from, 0, weightOf(rank, buffer), 0, from.bytes);
    }
  }
  const found = bytesOf(await session.run("main", inputs));
  t.equal(found, wanted, "same bytes");
  session.close();
}

for (const mesh of MESHES) {
  const title = JSON.stringify(mesh);

  for (const { target, skip } of TARGETS) {
    const change = `${title}: NaN in every other expert changes nothing`;
    t.test(
      `${change} on ${target}`,
      { skip },
      (t) => fillOthers(t, mesh, target),
    );
  }
  for (const name of COUNTED) {
    const where = `${name}, ${title}`;
    t.test(`${where}: the loader reads only a rank's weights`, async (t) => {
      const plan = await compileCheckpoint(name, { mesh });
      for (let rank = 0; rank < plan.ranks; rank++) {
        await checkReads(t, name, plan, rank);
      }
    });

    t.test(`${where}: weight buffers are as long as the shard`, async (t) => {
      const plan = await compileCheckpoint(name, { mesh });
      const tensors = await openWeights(name);
      for (let rank = 0; rank < plan.ranks; rank++) {
        const owned = ownedBy(plan, rank);
        const memory = new RankMemory(plan, createNullDevice(), rank);
        const bytes = plan.weights.reduce(
          (n, { buffer }) => n + memory.buffer(buffer).bytes,
          0,
        );
        t.equal(bytes, bytesOwned(tensors, owned), `rank ${rank}`);
      }
      const allocations = plan.weights.map(({ buffer }) =>
        plan.buffers[buffer]!.allocation
      );
      t.equal(
        new Set(allocations).size,
        allocations.length,
        "separate allocations",
      );
    });
  }
}

t.test("a rank rejects NaN in its experts", async (t) => {
  const plan = await compileCheckpoint(CHECKPOINT, { mesh: { ep: 4 } });
  const file = await withoutOthers(await openWeights(CHECKPOINT), []);
  for (let rank = 0; rank < plan.ranks; rank++) {
    const memory = new RankMemory(plan, createNullDevice(), rank);
    await t.rejects(loadWeights(plan, [memory], file), {
      name: "DataError",
      message: /experts\.\d.*is not a finite number/,
    });
  }
});

/** Returns the bytes in the file of all tensors except experts that are not `owned`. */
function bytesOwned(
  tensors: TensorDirectory,
  owned: readonly number[],
): number {
  return [...tensors].filter(([name]) => isOwned(name, owned))
    .reduce((n, [, { bytes }]) => n + bytes, 0);
}

/** Loads one rank and compares the bytes read of each tensor. */
async function checkReads(
  t: Test,
  checkpoint: string,
  plan: Plan,
  rank: number,
): Promise<void> {
  const owned = ownedBy(plan, rank);
  const read = new Map<string, number>();
  const tensors: TensorDirectory = new Map(
    [...await openWeights(checkpoint)].map(([name, entry]) => {
      const source: FileSource = {
        ...entry.source,
        read(offset, length) {
          read.set(name, (read.get(name) ?? 0) + length);
          return entry.source.read(offset, length);
        },
      };
      return [name, { ...entry, source }];
    }),
  );
  await loadWeights(
    plan,
    [new RankMemory(plan, createNullDevice(), rank)],
    tensors,
  );
  const wanted = [...tensors].filter(([name]) => isOwned(name, owned))
    .map(([name, { bytes }]) => [name, bytes] as const);
  t.strictSame(
    Object.fromEntries([...read].sort()),
    Object.fromEntries(wanted.sort()),
    `rank ${rank} with experts ${owned.join(" and ")}`,
  );
}
