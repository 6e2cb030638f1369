/**
 * The adapters of this machine, through Node's WebGPU binding. The only file of the runtime that sets environment
 * variables, each only temporarily.
 */

import { MachineError } from "../../spec/errors.ts";
import {
  adapterOf,
  describeAdapter,
  type GpuAdapter,
  requestAdapter,
} from "./gpu.ts";
import { keepInstance, politely } from "./politely.ts";
import { openQuietly } from "./quietly.ts";

/** Options of `listAdapters`. */
export interface ListAdaptersOptions {
  /** `navigator.gpu` of a browser or Deno. Default: the npm package `webgpu`. */
  readonly gpu?: GPU;
  /** Looks up the addresses of adapters; called only if several have one name. */
  readonly systemInfo?: () => Promise<AdapterSystemInfo>;
}

/** System information about adapters besides their names. */
export interface AdapterSystemInfo {
  /** Adapters with their PCI addresses (`0000:65:00.0`), from Mesa's device-select layer. */
  readonly pci: readonly { readonly name: string; readonly address: string }[];
  /** Description files of Vulkan drivers. */
  readonly driverFiles: readonly string[];
}

type Environment = { readonly [name: string]: string };

/** An adapter's name, and the environment in which the name selects it. */
interface NamedAdapter {
  readonly name: string;
  readonly environment: Environment;
  readonly address?: string;
  readonly twins?: number;
}

/** Whether the package with the WebGPU implementation is installed. It is optional, because CPUs do not need it. */
async function hasBinding(): Promise<boolean> {
  try {
    await import("webgpu");
    return true;
  } catch (error) {
    if ((error as { code?: string }).code === "ERR_MODULE_NOT_FOUND") {
      return false;
    }
    throw error;
  }
}

/** Why there is no adapter, and the fix. */
export async function withoutAdapter(): Promise<string> {
  return await hasBinding()
    ? "none. Install a Vulkan driver"
    : "none that can be used: the package 'webgpu' is not installed. Run 'npm install webgpu'";
}

/** The adapters, numbered. Empty if there is none, or if the package `webgpu` is not installed. */
export async function listAdapters(
  options: ListAdaptersOptions = {},
): Promise<GpuAdapter[]> {
  const { gpu } = options;
  if (gpu) {
    const adapter = await adapterOf(gpu);
    return adapter ? [adapter] : [];
  }
  if (!await hasBinding()) return [];
  const list: GpuAdapter[] = [];
  const adapters = await adapterNames(options.systemInfo);
  const names = adapters.map(({ name }) => name);
  for (const named of adapters) {
    const { adapter, gpu } = await openInstance(named, names);
    // The first device can use the adapter that was described.
    let unused: GPUAdapter | undefined = adapter;
    const request = async () => {
      const first = unused;
      unused = undefined;
      return first ?? (await openInstance(named, names)).adapter;
    };
    const { address, twins } = named;
    list.push({
      ...describeAdapter(adapter, {
        number: list.length,
        gpu,
        name: named.name,
        request,
      }),
      ...address === undefined ? {} : { address },
      ...twins === undefined ? {} : { twins },
    });
  }
  return list;
}

/** The adapter with a number in the list. */
export async function openGpu(
  number: number,
  options: ListAdaptersOptions = {},
): Promise<GpuAdapter> {
  const list = await listAdapters(options);
  const adapter = list[number];
  if (adapter) return adapter;
  throw new MachineError(
    `Cannot open adapter ${number}: this machine has ${
      list.length === 0
        ? await withoutAdapter()
        : `${list.length}, numbered from 0. Choose one of them`
    }`,
  );
}

/** Each request creates its own instance, because devices of one instance share its worker threads. */
async function openInstance(
  named: NamedAdapter,
  names: readonly string[],
): Promise<{ readonly gpu: GPU; readonly adapter: GPUAdapter }> {
  const { name, environment, address } = named;
  const title = address === undefined ? name : `${name}' at '${address}`;
  const opened = await withEnvironment(environment, async () => {
    const gpu = await createInstance(name);
    return { gpu, adapter: await requestAdapter(gpu, title) };
  });
  const { info } = opened.adapter;
  // The binding returns the first adapter whose name contains the requested one, so its name is read back.
  const given = names.find((other) =>
    other !== name && plain(other) === plain(info.device)
  );
  if (given === undefined) return opened;
  throw new MachineError(
    `Cannot open adapter '${title}': the driver gives '${given}' in its place. Hide that one with VK_DRIVER_FILES or DRI_PRIME`,
  );
}

/** A normalized adapter name: lowercase letters and digits. */
function plain(name: string): string {
  return name.toLowerCase().replace(/[^a-z0-9]+/g, "");
}

async function createInstance(name: string): Promise<GPU> {
  const { create } = await import("webgpu");
  // Subgroup matrices are an experiment of the implementation.
  const gpu = create([
    `adapter=${name}`,
    "enable-dawn-features=allow_unsafe_apis",
  ]);
  keepInstance(gpu);
  const request = gpu.requestAdapter.bind(gpu);
  const quietly = await openQuietly();
  gpu.requestAdapter = (options) => quietly(() => request(options));
  return gpu;
}

/** Adapter names, with the environment that distinguishes equal ones. */
async function adapterNames(
  systemInfo: ListAdaptersOptions["systemInfo"],
): Promise<NamedAdapter[]> {
  const names = await namesIn({});
  const unique = [...new Set(names)];
  if (unique.length === names.length) {
    return names.map((name) => ({ name, environment: {} }));
  }
  const known = await systemInfo?.() ?? { pci: [], driverFiles: [] };
  const found: NamedAdapter[] = [];
  for (const name of unique) {
    const wanted = names.filter((other) => other === name).length;
    if (wanted === 1) found.push({ name, environment: {} });
    else found.push(...await twinsOf(name, wanted, known));
  }
  return found;
}

/** The adapters of one name, each at an address where exactly one of them is visible. */
async function twinsOf(
  name: string,
  wanted: number,
  { pci, driverFiles }: AdapterSystemInfo,
): Promise<NamedAdapter[]> {
  const candidates: [place: string, environment: Environment][] = [
    // The layer hides all others. For an unlisted address it would return any adapter, so only listed ones are
    // requested.
    ...pci.filter((adapter) => adapter.name === name).map(
      ({ address }): [string, Environment] => [
        `PCI ${address}`,
        { DRI_PRIME: `pci-${address.replace(/[:.]/g, "_")}!` },
      ],
    ),
    ...driverFiles.map((file): [string, Environment] => [
      file,
      { VK_DRIVER_FILES: file },
    ]),
  ];
  const found: NamedAdapter[] = [];
  for (const [address, environment] of candidates) {
    if (found.length === wanted) break;
    const seen = await namesIn(environment);
    if (seen.filter((other) => other === name).length !== 1) continue;
    found.push({ name, environment, address });
  }
  // Without distinct addresses, the name selects only one of them.
  return found.length === wanted
    ? found
    : [{ name, environment: {}, twins: wanted }];
}

/** WebGPU cannot list adapters, but the binding's error for an unknown name lists them. */
async function namesIn(environment: Environment): Promise<string[]> {
  return await withEnvironment(environment, async () => {
    const gpu = await createInstance("<none>");
    try {
      await politely(gpu.requestAdapter());
      return [];
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      return [...text.matchAll(/backend: '(\w+)', name: '(.*)'/g)]
        .filter(([, backend]) => backend !== "null").map(([, , name]) => name!);
    }
  });
}

/** The Vulkan loader reads the environment at each request; it is restored immediately afterwards. */
async function withEnvironment<T>(
  environment: Environment,
  body: () => Promise<T>,
): Promise<T> {
  const before = new Map<string, string | undefined>();
  for (const [name, value] of Object.entries(environment)) {
    before.set(name, process.env[name]);
    process.env[name] = value;
  }
  try {
    return await body();
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
}
