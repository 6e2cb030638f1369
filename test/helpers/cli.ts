/** Runs the command line in process; returns its output and exit code. */

import { mkdtempSync, rmSync } from "node:fs";
import { cp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { Readable, Writable } from "node:stream";
import { adapterSystemInfo } from "../../cli/adapter_system_info.ts";
import { nodeFiles } from "../../cli/files.ts";
import { hubSettings } from "../../cli/hub_settings.ts";
import type { CliIo } from "../../cli/io.ts";
import { main } from "../../cli/main.ts";
import type { FileSystem } from "../../engine/mod.ts";
import { checkpointFolder } from "./checkpoints.ts";

/** Exit code and output of a command. */
export interface Finished {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Cache folder of commands of this process. Created on demand. */
export const CACHE = path.join(tmpdir(), `switchyard-cache-${process.pid}`);

/** Runs a command line in this process. */
export async function switchyard(
  argv: readonly string[],
  files: FileSystem = nodeFiles(),
  input: string | Uint8Array = "",
): Promise<Finished> {
  return await withOutput((io) => main(argv, io), {
    files,
    input: Readable.from([input]),
  });
}

/** Runs a program in this process and captures its output. */
export async function withOutput(
  program: (io: CliIo) => Promise<number>,
  overrides: Partial<CliIo> = {},
): Promise<Finished> {
  let out = "", err = "";
  const io: CliIo = {
    out: (text) => {
      out += text;
      return Promise.resolve();
    },
    err: (line) => {
      err += `${line}\n`;
    },
    input: Readable.from([""]),
    terminal: false,
    progressLines: false,
    errorStream: new Writable(),
    files: nodeFiles(),
    cache: CACHE,
    hub: hubSettings({ HF_HOME: path.join(CACHE, "hub"), HF_HUB_OFFLINE: "1" }),
    environment: {},
    threads: 2,
    graphics: true,
    systemInfo: adapterSystemInfo,
    now: () => performance.now(),
    bytesRead: () => 0,
    browse: () => {},
    onInterrupt: () => () => {},
    ...overrides,
  };
  const code = await program(io);
  return { code, out, err };
}

/** Creates a folder that is removed at teardown. */
export function temporaryFolder(
  t: { teardown(fn: () => void): unknown },
): string {
  const folder = mkdtempSync(path.join(tmpdir(), "switchyard-"));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A tensor of a safetensors file. `data`: its bytes. */
export interface RawTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** Reads the tensors of a safetensors file. */
export async function readRaw(
  file: string,
): Promise<{ [name: string]: RawTensor }> {
  const bytes = await readFile(file);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + length)) as {
    [name: string]: {
      dtype: string;
      shape: number[];
      data_offsets: [number, number];
    };
  };
  return Object.fromEntries(
    Object.entries(header).filter(([name]) => name !== "__metadata__").map(
      ([name, { dtype, shape, data_offsets: [from, to] }]) => [name, {
        dtype,
        shape,
        data: bytes.subarray(8 + length + from, 8 + length + to),
      }],
    ),
  );
}

/** Writes a safetensors file. */
export async function writeRaw(
  file: string,
  tensors: { readonly [name: string]: RawTensor },
): Promise<void> {
  let end = 0;
  const header = Object.entries(tensors).map(([name, tensor]) => {
    const from = end;
    end += tensor.data.length;
    const { dtype, shape } = tensor;
    return [name, { dtype, shape, data_offsets: [from, end] }];
  });
  const text = Buffer.from(JSON.stringify(Object.fromEntries(header)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const data = Object.values(tensors).map((tensor) => tensor.data);
  await writeFile(file, Buffer.concat([length, text, ...data]));
}

/** Returns integers as an I32 tensor. */
export function integers(
  shape: readonly number[],
  values: readonly number[],
): RawTensor {
  return {
    dtype: "I32",
    shape,
    data: new Uint8Array(Int32Array.from(values).buffer),
  };
}

/** Returns pseudorandom numbers from -scale to scale as an F32 tensor. Deterministic by rank of the shape. */
export function floats(shape: number[], scale: number): RawTensor {
  let state = shape.length;
  const data = new Float32Array(shape.reduce((product, n) => product * n, 1))
    .map(() => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (state / 2 ** 31 - 1) * scale;
    });
  return { dtype: "F32", shape, data: new Uint8Array(data.buffer) };
}

/** Copies a reference checkpoint, so that a test can change it. */
export async function copyCheckpoint(
  name: string,
  folder: string,
): Promise<string> {
  const to = path.join(folder, name);
  await cp(checkpointFolder(name), to, { recursive: true });
  return to;
}
