/**
 * The other projects: the used parts of their APIs, and their installation. The types are declared here, so the project
 * can be type-checked without them.
 */

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { MachineError } from "../../spec/errors.ts";

const FOLDER = fileURLToPath(new URL(".", import.meta.url));

/** Versions by package. */
type Versions = { readonly [name: string]: string };

/** Installs the other projects in a separate folder if necessary. Returns their versions. */
export function installPeers(): Versions {
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new MachineError(
      `Cannot compare with the peers: their builds are pinned for Linux on x64, and this is ${process.platform} on ${process.arch}. Run it there`,
    );
  }
  const { dependencies } = JSON.parse(
    readFileSync(join(FOLDER, "package.json"), "utf8"),
  ) as { dependencies: Versions };
  const present = Object.entries(dependencies).every(([name, version]) =>
    installedVersion(name) === version
  );
  if (present) return dependencies;
  console.error(
    `Installing into bench/peers/node_modules (600 MB): ${
      Object.entries(dependencies).map((entry) => entry.join(" ")).join(", ")
    }`,
  );
  // Skips install scripts and optional packages, which would download or build GPU variants. 'npm ci' is not used,
  // because it requires an entry for the optional packages of every system in the lock file.
  const argv =
    "install --no-save --ignore-scripts --omit=optional --no-audit --no-fund";
  const { status } = spawnSync("npm", argv.split(" "), {
    cwd: FOLDER,
    stdio: ["ignore", 2, 2],
    env: { ...process.env, ONNXRUNTIME_NODE_INSTALL: "skip" },
  });
  if (status === 0) return dependencies;
  throw new MachineError(
    `Cannot install the peers: 'npm ${argv}' failed. Run it in bench/peers`,
  );
}

function installedVersion(name: string): string | undefined {
  try {
    return packageOf(name).version;
  } catch {
    return undefined;
  }
}

function packageOf(
  name: string,
): { readonly version: string; readonly main: string } {
  const file = join(FOLDER, "node_modules", name, "package.json");
  return JSON.parse(readFileSync(file, "utf8")) as {
    version: string;
    main: string;
  };
}

/** Imports a project by path. Programs are compiled into another folder, from which it cannot be found by name. */
export async function importPeer(name: string): Promise<unknown> {
  const file = join(FOLDER, "node_modules", name, packageOf(name).main);
  return await import(pathToFileURL(file).href) as unknown;
}

/** A tensor of onnxruntime. */
export interface OrtTensor {
  readonly data: Float32Array | BigInt64Array;
}

/** The used part of onnxruntime-node. */
export interface Ort {
  readonly Tensor: new (
    type: "float32" | "int64" | "int32",
    data: Float32Array | BigInt64Array | Int32Array,
    shape: readonly number[],
  ) => OrtTensor;
  readonly InferenceSession: {
    create(model: Uint8Array, options: {
      readonly executionProviders: readonly string[];
      readonly intraOpNumThreads?: number;
      readonly interOpNumThreads?: number;
      /** 3: errors. */
      readonly logSeverityLevel?: number;
    }): Promise<OrtSession>;
  };
}

/** A loaded model of onnxruntime. */
export interface OrtSession {
  run(
    inputs: { readonly [name: string]: OrtTensor },
  ): Promise<{ readonly [name: string]: OrtTensor }>;
  release(): Promise<void>;
}

/** Loads onnxruntime-node. */
export function loadOrt(): Ort {
  return createRequire(import.meta.url)("onnxruntime-node") as Ort;
}

/** A sequence of llama.cpp. */
export interface LlamaSequence {
  evaluate(
    tokens: readonly number[],
    options: {
      readonly temperature: number;
      readonly yieldEogToken: boolean;
    },
  ): AsyncGenerator<number, void>;
  controlledEvaluate(
    input: readonly (
      | number
      | readonly [number, {
        readonly generateNext: { readonly logits: boolean };
      }]
    )[],
  ): Promise<
    readonly ({
      readonly next: { readonly logits?: ReadonlyMap<number, number> };
    } | undefined)[]
  >;
  clearHistory(): Promise<void>;
}

/** A context of llama.cpp. */
export interface LlamaContext {
  getSequence(): LlamaSequence;
}

/** The used part of node-llama-cpp. */
export interface LlamaCpp {
  getLlama(options: {
    readonly gpu: false | "vulkan";
    readonly build: "never";
    readonly skipDownload: boolean;
    readonly progressLogs: boolean;
    readonly logLevel: "error";
    readonly maxThreads: number;
  }): Promise<Llama>;
}

/** A loaded llama.cpp. */
export interface Llama {
  loadModel(options: {
    readonly modelPath: string;
    readonly gpuLayers?: "max" | 0;
  }): Promise<{
    createContext(options: {
      /** Positions of all sequences. */
      readonly contextSize: number;
      readonly sequences?: number;
      readonly batchSize: number;
      readonly threads: number;
      readonly flashAttention: boolean;
      readonly experimentalKvCacheKeyType: "F32";
      readonly experimentalKvCacheValueType: "F32";
    }): Promise<LlamaContext>;
  }>;
  dispose(): Promise<void>;
}

/** Loads node-llama-cpp. */
export async function loadLlamaCpp(): Promise<LlamaCpp> {
  return await importPeer("node-llama-cpp") as LlamaCpp;
}
