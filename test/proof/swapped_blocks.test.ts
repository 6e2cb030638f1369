// What arrives matters: swapping the rows that two ranks received changes the output, and the check steps see it.
// needs: cpu, gpu
import t from "tap";
import {
  type Communicator,
  createCommunicator,
  type RankMemory,
} from "../../runtime/mod.ts";
import { onRank } from "../../spec/plan/plan.ts";
import {
  bytesOf,
  compileCheckpoint,
  type DeviceOptions,
  openSession,
  openWeights,
  packedPrompts,
  TARGETS,
  type Tensors,
} from "../helpers/sessions.ts";

const CHECKPOINT = "mixtral-6e";

/** Exchanges as usual; then the first two ranks of a group swap what they received on the way to the experts. */
function swappingCommunicator(): Communicator {
  const honest = createCommunicator();
  return {
    ...honest,
    bind(step, group, context) {
      const exchange = honest.bind(step, group, context);
      if (step.op !== "allToAll" || step.direction === "back") return exchange;
      const [a, b] = group as [RankMemory, RankMemory];
      const lengths = [a, b].map(({ rank }) =>
        onRank(context.plan.buffers[step.to]!.bytes, rank)
      );
      return async (counts) => {
        await exchange(counts);
        await swap(a, b, { name: step.to, bytes: Math.min(...lengths) });
      };
    },
  };
}

async function swap(
  a: RankMemory,
  b: RankMemory,
  { name, bytes }: { readonly name: string; readonly bytes: number },
): Promise<void> {
  const [ofA, ofB] = await Promise.all(
    [a, b].map((memory) => memory.device.read(memory.buffer(name), 0, bytes)),
  );
  a.device.write(a.buffer(name), 0, ofB!);
  b.device.write(b.buffer(name), 0, ofA!);
}

async function run(
  mesh: { readonly [axis: string]: number },
  devices: DeviceOptions,
  communicator?: Communicator,
): Promise<Tensors> {
  const plan = await compileCheckpoint(CHECKPOINT, { mesh, check: true });
  const session = await openSession(plan, {
    ...devices,
    tensors: await openWeights(CHECKPOINT),
    ...(communicator ? { communicator } : {}),
  });
  try {
    return await session.run("main", packedPrompts([9, 7, 5, 3]));
  } finally {
    session.close();
  }
}

/** The number of choices that did not return, of every routing. */
function strayed(outputs: Tensors): number[] {
  return Object.entries(outputs)
    .filter(([name]) => name.startsWith("check."))
    .map(([, { data }]) => Array.from(data).reduce((n, x) => n + x, 0));
}

const CASES = [
  { mesh: { ep: 4 }, sharing: "shared" },
  { mesh: { ep: 4 }, sharing: "separate" },
  { mesh: { dp: 2, ep: 2 }, sharing: "shared" },
] as const;

for (const { target, skip } of TARGETS) {
  for (const { mesh, sharing } of CASES) {
    const title = `${JSON.stringify(mesh)}, ${sharing}, on ${target}`;
    t.test(title, { skip }, async (t) => {
      const devices = { target, sharing };
      const honest = await run(mesh, devices);
      const swapped = await run(mesh, devices, swappingCommunicator());
      t.strictSame(strayed(honest), [0, 0], "every choice returns");
      for (const count of strayed(swapped)) t.ok(count > 0, "some do not");
      t.not(
        bytesOf({ logits: swapped["logits"]! }),
        bytesOf({ logits: honest["logits"]! }),
        "the output changes",
      );
    });
  }
}
