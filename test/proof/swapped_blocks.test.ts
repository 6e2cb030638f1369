// Outputs depend on received rows: swapping the rows of two ranks changes the output, and check steps detect it.
// needs: cpu, gpu
// rotates with: runtime/exchange/communicator.ts, runtime/exchange/exchange.ts, runtime/exchange/local_communicator.ts, compiler/passes/lower/routing/check.ts
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

/** Exchanges rows, then swaps the rows that the first two ranks of a group received in a dispatch. */
function swappingCommunicator(): Communicator {
  const correct = createCommunicator();
  return {
    ...correct,
    bind(step, group, context) {
      const exchange = correct.bind(step, group, context);
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

/** Returns the number of choices that did not return, for every routing. */
function lostChoices(outputs: Tensors): number[] {
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
      const correct = await run(mesh, devices);
      const swapped = await run(mesh, devices, swappingCommunicator());
      t.strictSame(lostChoices(correct), [0, 0], "every choice returns");
      for (const count of lostChoices(swapped)) {
        t.ok(count > 0, "some choices are lost");
      }
      t.not(
        bytesOf({ logits: swapped["logits"]! }),
        bytesOf({ logits: correct["logits"]! }),
        "the output changes",
      );
    });
  }
}
