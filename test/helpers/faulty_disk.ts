/** A disk on which one call fails. */

import * as fs from "node:fs/promises";
import path from "node:path";
import type { Disk } from "../../cli/files.ts";

/** What goes wrong: an error of the system, or a read that gives less than was asked. */
export type Fault = "EIO" | "ENOSPC" | "EINTR" | "short";

/** A disk, and the calls that it has taken. */
export interface FaultyDisk {
  readonly disk: Disk;
  calls(): number;
  /** Of each call what it does and to which file, without what differs from process to process: `read config.json`. */
  readonly kinds: readonly string[];
}

const CALLS = [
  ...["appendFile", "link", "mkdir", "open", "readFile", "readdir"],
  ...["rename", "rm", "stat", "writeFile"],
] as const;

const HANDLE = ["close", "read", "readFile", "stat", "sync", "writeFile"];

/** The disk of this machine, but call `at` (from 0) of calls on it and its open files fails. */
export function faultyDisk(at: number, fault: Fault): FaultyDisk {
  let calls = 0;
  const kinds: string[] = [];
  const fails = (name: string, file: unknown) => {
    const base = path.basename(String(file)).replace(
      /(\.\d+|\.[0-9a-f-]{36})+$/,
      "",
    );
    kinds.push(`${name} ${base.replace(/-\d{8}-/, "-step-")}`);
    return calls++ === at;
  };
  const refuse = () => {
    throw Object.assign(new Error(`${fault}: made up`), { code: fault });
  };
  const wrapHandle = (handle: fs.FileHandle, file: unknown): fs.FileHandle =>
    new Proxy(handle, {
      get: (target, key: keyof fs.FileHandle) => {
        const member = target[key] as unknown;
        if (typeof member !== "function") return member;
        const call = member.bind(target) as (...args: unknown[]) => unknown;
        if (!HANDLE.includes(String(key))) return call;
        return async (...args: unknown[]) => {
          if (!fails(`handle ${String(key)}`, file)) return await call(...args);
          if (key === "close") await call();
          if (fault !== "short") refuse();
          // buffer, offset, length, position
          if (key === "read") args[2] = Math.ceil(Number(args[2]) / 2);
          return key === "close" ? undefined : await call(...args);
        };
      },
    });
  const disk = Object.fromEntries(CALLS.map((name) => [
    name,
    async (...args: unknown[]) => {
      if (fails(name, args[0]) && fault !== "short") refuse();
      const call = fs[name] as (...args: unknown[]) => Promise<unknown>;
      const done = await call(...args);
      return name === "open"
        ? wrapHandle(done as fs.FileHandle, args[0])
        : done;
    },
  ])) as unknown as Disk;
  return { disk, calls: () => calls, kinds };
}
