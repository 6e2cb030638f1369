// Adapters of the same name: two copies of the software driver stand in for two GPUs of one model.
// needs: cpu, gpu, mpi
// rotates with: cli/adapter_system_info.ts, runtime/gpu/adapters.ts
import { copyFileSync, existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import t from "tap";
import {
  adapterSystemInfo,
  parseDeviceList,
} from "../cli/adapter_system_info.ts";
import { selectDevices } from "../engine/devices.ts";
import { createGpuDevice, listAdapters } from "../runtime/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { LAUNCHERS, skipWithoutMpi, startWith } from "./helpers/mpi.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";

const DRIVER = [
  "/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so",
  "/usr/lib/aarch64-linux-gnu/libvulkan_lvp.so",
].find((file) => existsSync(file));
const skip = skipUnasked("gpu") || DRIVER === undefined &&
    "Mesa's software driver is not installed (Debian package mesa-vulkan-drivers)";
const MODEL = checkpointFolder("mixtral-6e");

/** Makes the Vulkan loader find only `copies` copies of the software driver. */
async function twins(t: Tap, copies: number): Promise<string[]> {
  const folder = temporaryFolder(t);
  const files: string[] = [];
  for (let i = 0; i < copies; i++) {
    const library = path.join(folder, `libvulkan_lvp${i}.so`);
    copyFileSync(DRIVER!, library);
    const file = path.join(folder, `lvp${i}.json`);
    const manifest = {
      file_format_version: "1.0.0",
      ICD: { api_version: "1.4.0", library_path: library },
    };
    await writeFile(file, JSON.stringify(manifest));
    files.push(file);
  }
  const before = process.env["VK_DRIVER_FILES"];
  process.env["VK_DRIVER_FILES"] = files.join(":");
  t.teardown(() => {
    if (before === undefined) delete process.env["VK_DRIVER_FILES"];
    else process.env["VK_DRIVER_FILES"] = before;
  });
  return files;
}

/** Assertions and teardown of a test. */
interface Tap {
  teardown(fn: () => void): unknown;
}

t.test("the list of Mesa's device-select layer names PCI addresses", (t) => {
  const text = [
    "selectable devices:",
    '  GPU 0: 10de:2330 "NVIDIA H100 80GB HBM3" discrete GPU 0000:65:00.0',
    '  GPU 1: 10de:2330 "NVIDIA H100 80GB HBM3" discrete GPU 0000:CA:00.0',
    '  GPU 2: 10005:0 "llvmpipe (LLVM 19.1.7, 256 bits)" CPU',
  ].join("\n");
  t.strictSame(parseDeviceList(text), [
    { name: "NVIDIA H100 80GB HBM3", address: "0000:65:00.0" },
    { name: "NVIDIA H100 80GB HBM3", address: "0000:ca:00.0" },
  ]);
  t.end();
});

t.test(
  "two adapters of one name are listed with their addresses",
  { skip },
  async (t) => {
    const files = await twins(t, 2);
    const adapters = await listAdapters({ systemInfo: adapterSystemInfo });
    t.strictSame(adapters.map(({ number, address }) => [number, address]), [
      [0, files[0]],
      [1, files[1]],
    ]);
    const [first, second] = adapters;
    t.equal(first!.name, second!.name);
    const device = await createGpuDevice(second!);
    const buffer = device.createBuffer(8, "here");
    device.write(buffer, 0, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    t.strictSame([...await device.read(buffer, 4, 4)], [5, 6, 7, 8]);
    const maps = readFileSync("/proc/self/maps", "utf8");
    t.match(maps, "libvulkan_lvp1.so", "the second driver is the copy");
    device.destroy();

    const listed = await switchyard(["devices"]);
    t.match(listed.out, `0  ${first!.name} (software, ${files[0]})`);
    t.match(listed.out, `1  ${first!.name} (software, ${files[1]})`);
  },
);

t.test("indistinguishable adapters are reported", { skip }, async (t) => {
  await twins(t, 2);
  const [only, ...more] = await listAdapters();
  t.strictSame([only!.twins, more], [2, []]);
  // An explicit list means two adapters.
  await t.rejects(
    selectDevices({ sharing: "separate", adapter: [0, 1] }),
    {
      name: "MachineError",
      message:
        /^Cannot use adapter 1: it is not in the list\. There are 2 adapters named '.*', and they cannot be distinguished\. Install /,
    },
  );
});

t.test(
  "ranks on two adapters of one name do not share one",
  { skip },
  async (t) => {
    await twins(t, 2);
    const folder = temporaryFolder(t);
    const file = (name: string) => path.join(folder, name);
    await writeRaw(file("in"), { input_ids: integers([1, 3], [5, 6, 7]) });
    const run = async (...adapter: string[]) =>
      await switchyard([
        ...["run", MODEL, "--inputs", file("in"), "--outputs", file("out")],
        ...["--mesh", "ep=2", "--devices", "separate", "--adapter", ...adapter],
      ]);
    const two = await run("0,1");
    t.strictSame([two.code, two.err], [0, ""], "nothing is shared");
    const bytes = readFileSync(file("out"));
    const one = await run("0");
    t.equal(one.code, 0);
    t.match(one.err, /^2 ranks share 1 adapter: llvmpipe/);
    t.strictSame(readFileSync(file("out")), bytes, "the same bytes");
    const twice = await run("1,1");
    t.equal(twice.code, 3);
    t.match(
      twice.err,
      "Cannot give 2 ranks an adapter each: the list names only 1 different",
    );
    const none = await run("0,2");
    t.equal(none.code, 3);
    t.match(none.err, "Cannot use adapter 2: this machine has 2");
  },
);

const launcher = LAUNCHERS.find(({ skip }) => !skip);
const skipJob = skip || skipWithoutMpi;

t.test("each process uses one adapter", { skip: skipJob }, async (t) => {
  await twins(t, 2);
  const folder = temporaryFolder(t);
  const file = (name: string) => path.join(folder, name);
  await writeRaw(file("in"), { input_ids: integers([1, 3], [5, 6, 7]) });
  const run = ["run", MODEL, "--inputs", file("in"), "--outputs"];
  const launch = async (adapter: string) =>
    await startWith(launcher!, folder, [
      ...["launch", "-n", "2", "--", ...run, file("two")],
      ...["--adapter", adapter],
    ]).ended;
  const one = await switchyard([...run, file("one"), "--adapter", "0"]);
  t.equal(one.code, 0);
  const two = await launch("0,1");
  t.equal(two.code, 0, two.err);
  t.notMatch(two.err, "share", "nothing is shared");
  t.strictSame(readFileSync(file("two")), readFileSync(file("one")));
  const twice = await launch("1,1");
  t.equal(twice.code, 3);
  t.match(twice.err, "Cannot give 2 ranks an adapter each");
});
