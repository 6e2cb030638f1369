/** Disk on which one call fails, or one and all later calls that need space. */

import * as fs from "node:fs/promises";
import path from "node:path";
import type { Disk } from "../../cli/files.ts";

/** `full`: the disk stays full. `short`: a read returns fewer bytes than requested. Others: one error of the system. */
export const FAULTS = ["EIO", "ENOSPC", "EINTR", "full", "short"] as const;

export type Fault = (typeof FAULTS)[number];

/** Call of a disk. */
export interface DiskCall {
  readonly name: string;
  readonly file: string;
}

/** Disk with its calls. */
export interface FaultyDisk {
  readonly disk: Disk;
  readonly calls: readonly DiskCall[];
  readonly failed: readonly DiskCall[];
}

const CALLS = [
  ...["appendFile", "link", "mkdir", "open", "readFile", "readdir"],
  ...["realpath", "rename", "rm", "stat", "writeFile"],
] as const;

const HANDLE = ["close", "read", "readFile", "stat", "sync", "writeFile"];

/** Calls that allocate space on the disk. */
const GROWS = ["appendFile", "link", "mkdir", "writeFile", "handle writeFile"];

/** Returns the name of a call and of its file without the parts that differ between processes: `read config.json`. */
export function kindOf({ name, file }: DiskCall): string {
  return `${name} ${
    path.basename(finalName(file)).replace(/-\d{8}-/, "-step-")
  }`;
}

/** Returns a path without the suffixes of process ids and UUIDs of temporary files, and without their leading dot. */
export function finalName(file: string): string {
  const base = path.basename(file).replace(/(\.\d+|\.[0-9a-f-]{36})+$/, "");
  const isTemporary = base !== path.basename(file);
  return path.join(
    path.dirname(file),
    isTemporary ? base.replace(/^\./, "") : base,
  );
}

/**
 * Returns the disk of this machine with a fault in call `at` (from 0), counting calls of the disk and of its open
 * files.
 */
export function faultyDisk(at: number, fault: Fault): FaultyDisk {
  const [calls, failed]: [DiskCall[], DiskCall[]] = [[], []];
  const fails = (name: string, file: unknown) => {
    const call = { name, file: String(file) };
    const now = calls.push(call) - 1;
    const full = fault === "full" && at >= 0 && now > at;
    if (now !== at && !(full && GROWS.includes(name))) return false;
    failed.push(call);
    return true;
  };
  const refuse = (): never => {
    const code = fault === "full" ? "ENOSPC" : fault;
    throw Object.assign(new Error(`${code}: injected`), { code });
  };
  /** Returns the half that a failed write has written. */
  const halfOf = (data: unknown) =>
    typeof data === "string"
      ? data.slice(0, data.length >> 1)
      : (data as Uint8Array).subarray(0, (data as Uint8Array).length >> 1);
  const wrapHandle = (handle: fs.FileHandle, file: unknown): fs.FileHandle =>
    new Proxy(handle, {
      get: (target, name: keyof fs.FileHandle) => {
        const key = String(name);
        const member = target[name] as unknown;
        if (typeof member !== "function") return member;
        const call = member.bind(target) as (...args: unknown[]) => unknown;
        if (!HANDLE.includes(key)) return call;
        return async (...args: unknown[]) => {
          if (!fails(`handle ${key}`, file)) {
            // Tests do not need durability, and sync takes most of the time.
            return key === "sync" ? undefined : await call(...args);
          }
          // buffer, offset, length, position
          if (fault === "short" && key === "read") {
            args[2] = Math.ceil(Number(args[2]) / 2);
          }
          if (fault === "short") return await call(...args);
          if (key === "close") await call();
          if (key === "writeFile") await call(halfOf(args[0]));
          return refuse();
        };
      },
    });
  const disk = Object.fromEntries(CALLS.map((name) => [
    name,
    async (...args: unknown[]) => {
      const call = fs[name] as (...args: unknown[]) => Promise<unknown>;
      if (fails(name, args[0]) && fault !== "short") {
        if (name === "writeFile" || name === "appendFile") {
          await call(args[0], halfOf(args[1]), ...args.slice(2));
        }
        return refuse();
      }
      const done = await call(...args);
      return name === "open"
        ? wrapHandle(done as fs.FileHandle, args[0])
        : done;
    },
  ])) as unknown as Disk;
  return { disk, calls, failed };
}

const STATES: { readonly [of in Fault]: string } = {
  EIO: "the disk reports an error. Check the disk",
  ENOSPC: "the disk is full. Free some space",
  EINTR: "it was interrupted. Start again",
  full: "the disk is full. Free some space",
  short: "nothing",
};

/** Returns the problem of an error message, or undefined if it names the file of a failed call and the disk's error. */
export function wrongMessage(
  message: string,
  failed: readonly DiskCall[],
  fault: Fault,
): string | undefined {
  const [, named, state] = /^Cannot (?:read|write) '([^']+)': (.*)$/s.exec(
    message.trimEnd(),
  ) ?? [];
  // The folder of a file is synced for that file.
  const files = named === undefined ? [] : [named, path.dirname(named)];
  return state === STATES[fault] &&
      failed.some(({ file }) => files.includes(finalName(file)))
    ? undefined
    : `it says '${message}'`;
}
