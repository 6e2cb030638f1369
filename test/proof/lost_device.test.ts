// A device lost during a run causes an error that names it, on every kind of exchange.
// needs: cpu, gpu
import t, { type Test } from "tap";
import {
  createGpuDevice,
  type Device,
  type GpuAdapter,
  listAdapters,
} from "../../runtime/mod.ts";
import {
  compileCheckpoint,
  openSession,
  openWeights,
  packedPrompts,
  type Sharing,
  skip,
  watchDevice,
} from "../helpers/sessions.ts";

const LOST_RANK = 2;

/** Returns a device with a function that destroys it by a call of the driver, unknown to the runtime. */
async function openLosable(
  adapter: GpuAdapter,
  label: string,
): Promise<{ device: Device; lose: () => void }> {
  let gpu: GPUDevice | undefined;
  const device = await createGpuDevice({
    ...adapter,
    async request() {
      const real = await adapter.request();
      return new Proxy(real, {
        get(target, key) {
          if (key === "requestDevice") {
            return async (descriptor: GPUDeviceDescriptor) =>
              gpu = await target.requestDevice(descriptor);
          }
          const value: unknown = Reflect.get(target, key, target);
          return typeof value === "function" ? value.bind(target) : value;
        },
      });
    },
  }, { label });
  return { device, lose: () => gpu!.destroy() };
}

async function lose(t: Test, sharing: Sharing): Promise<void> {
  const plan = await compileCheckpoint("mixtral-6e", { mesh: { ep: 4 } });
  const [adapter] = await listAdapters();
  const count = sharing === "shared" ? 1 : plan.ranks;
  const opened = await Promise.all(
    Array.from(
      { length: count },
      (_, i) =>
        openLosable(adapter!, sharing === "shared" ? "all ranks" : `rank ${i}`),
    ),
  );
  const victim = opened[LOST_RANK % count]!;
  let launches = 0;
  let armed = false;
  const watched = opened.map(({ device }) =>
    device !== victim.device ? device : watchDevice(device, {
      launch(...launch) {
        launches++;
        if (armed && launches === 5) victim.lose();
        device.launch(...launch);
      },
    })
  );
  const session = await openSession(plan, {
    devices: Array.from(
      { length: plan.ranks },
      (_, rank) => watched[rank % count]!,
    ),
    tensors: await openWeights("mixtral-6e"),
  });
  const inputs = packedPrompts([9, 7, 5, 3]);
  await session.run("main", inputs);
  session.reset();
  [armed, launches] = [true, 0];
  const named = sharing === "shared" ? "all ranks" : `rank ${LOST_RANK}`;
  for (const when of ["during a run", "in the next run"]) {
    await t.rejects(session.run("main", inputs), {
      name: "MachineError",
      message: new RegExp(
        `^Cannot compute on device '.+' \\(${named}\\): .*lost`,
      ),
    }, `${when}, the error names the device`);
  }
  session.close();
}

for (const sharing of ["shared", "separate"] as const) {
  t.test(`losing a device, ${sharing}`, { skip }, (t) => lose(t, sharing));
}
