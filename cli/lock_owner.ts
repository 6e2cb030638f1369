/** Processes that own locks: their unique identity, and whether they still run. */

import * as fs from "node:fs/promises";
import { hostname } from "node:os";
import process from "node:process";
import { codeOf } from "../runtime/cache/folders.ts";
import { parseJson } from "../spec/parse_json.ts";

/** The owner of a lock. */
export interface Owner {
  /** Unique per owner, also within one process. */
  readonly id: string;
  readonly pid: number;
  readonly host: string;
  /** Time when the lock was taken, in ISO 8601. */
  readonly since: string;
  /** Start of the process, in ticks since the boot. It distinguishes the process from a later one with the same pid. */
  readonly start: string | undefined;
  /** The PID namespace that the pid belongs to. */
  readonly namespace: string | undefined;
  /** The id of this installation of the operating system. */
  readonly machine: string | undefined;
  readonly boot: string | undefined;
}

/** Whether the process of an owner runs. It is unknown for other hosts and PID namespaces. */
export type OwnerState = "runs" | "ended" | "unknown";

/** The current process as lock owner, and the state of other processes. */
export interface Processes {
  /** Creates a new owner for this process. */
  owner(): Promise<Owner>;
  stateOf(owner: Owner): Promise<OwnerState>;
}

/** The processes of this machine. */
export const nodeProcesses: Processes = { owner, stateOf };

/** The PID namespace of a Linux system outside of containers. */
const INITIAL_NAMESPACE = "pid:[4026531836]";

/** States of ended processes in `/proc`. */
const ENDED = ["Z", "X", "x"];

/** Reads an owner from the text of a lock. Undefined if the text names none. */
export function parseOwner(text: string): Owner | undefined {
  let parsed: Partial<Owner>;
  try {
    parsed = (parseJson(text) ?? {}) as Partial<Owner>;
  } catch {
    return undefined;
  }
  const { id, pid, host, since, start, namespace, machine, boot } = parsed;
  const legal = typeof id === "string" && /^[0-9a-f-]{36}$/.test(id) &&
    Number.isSafeInteger(pid) && pid! > 0 &&
    [host, since].every((field) => typeof field === "string") &&
    [start, namespace, machine, boot].every((field) =>
      field === undefined || typeof field === "string"
    );
  return legal
    ? {
      id,
      pid: pid!,
      host: host!,
      since: since!,
      start,
      namespace,
      machine,
      boot,
    }
    : undefined;
}

/** Formats an owner for messages. */
export function describeOwner({ pid, host, since }: Owner): string {
  return `process ${pid} on ${host}, since ${since}`;
}

async function owner(): Promise<Owner> {
  // A /proc that shows another PID namespace has no information about this one.
  const shown = await unlessMissing(fs.readlink("/proc/self"));
  const [stat, namespace, machine, boot] = await Promise.all([
    shown === String(process.pid) ? statOf(process.pid) : undefined,
    unlessMissing(fs.readlink("/proc/self/ns/pid")),
    unlessMissing(fs.readFile("/etc/machine-id", "utf8")),
    unlessMissing(fs.readFile("/proc/sys/kernel/random/boot_id", "utf8")),
  ]);
  return {
    id: crypto.randomUUID(),
    pid: process.pid,
    host: hostname(),
    since: new Date().toISOString(),
    start: stat?.start,
    namespace,
    machine: machine?.trim() || undefined,
    boot: boot?.trim(),
  };
}

async function stateOf(other: Owner): Promise<OwnerState> {
  const here = await owner();
  const near = (["host", "machine", "namespace"] as const).every((field) =>
    other[field] === here[field]
  );
  if (!near) return "unknown";
  if (other.boot !== here.boot) {
    // Two containers on two machines can have the same names. Two systems outside of containers cannot.
    return here.machine !== undefined && here.namespace === INITIAL_NAMESPACE
      ? "ended"
      : "unknown";
  }
  try {
    process.kill(other.pid, 0);
  } catch (error) {
    if (codeOf(error) === "ESRCH") return "ended";
  }
  if (here.start === undefined) return "runs";
  const now = await statOf(other.pid);
  if (now === undefined) return "runs";
  const same = other.start === undefined || other.start === now.start;
  return same && !ENDED.includes(now.state) ? "runs" : "ended";
}

/** Returns the state of a process and its start time on Linux. */
async function statOf(
  pid: number,
): Promise<{ readonly state: string; readonly start: string } | undefined> {
  const stat = await unlessMissing(fs.readFile(`/proc/${pid}/stat`, "utf8"));
  if (stat === undefined) return undefined;
  // The program name in parentheses may contain any characters.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0]!, start: fields[19]! };
}

async function unlessMissing(
  read: Promise<string>,
): Promise<string | undefined> {
  return await read.catch(() => undefined);
}
