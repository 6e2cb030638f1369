/**
 * Runs a command of this clone as a process, and measures the time of its first line, the memory of its processes, and
 * its end. Linux only.
 */

import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(
  new URL("../../bin/switchyard.mjs", import.meta.url),
);

/** Milliseconds between samples of the processes. */
const LOOK_MS = 50;

/** Clock ticks per second in /proc. */
const TICKS = 100;

/** The results of a command. */
export interface Ran {
  readonly code: number | null;
  /** Milliseconds until the first line, and core seconds of all processes until then. */
  readonly firstMs: number;
  readonly firstCores: number;
  /** Milliseconds from the last line until all processes have ended and their memory is free. */
  readonly endMs: number;
  /** Peak resident bytes of each Node process including pages of files, largest first. */
  readonly peaks: readonly number[];
  /** Largest sampled anonymous memory of a process in bytes. */
  readonly anonymous: number;
  /** The text of the command. */
  readonly out: string;
}

/** Runs a command, such as `["generate", FOLDER]`. */
export async function runCommand(argv: readonly string[]): Promise<Ran> {
  const start = performance.now();
  const child = spawn(process.execPath, [PROGRAM, ...argv], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const peaks = new Map<number, number>();
  let [cores, anonymous] = [0, 0];
  let left: number[] = [];
  const look = () => {
    left = treeOf(child.pid!);
    cores = 0;
    for (const pid of left) {
      const found = looked(pid);
      cores += found.cores;
      anonymous = Math.max(anonymous, found.anonymous);
      if (found.name.includes("node")) peaks.set(pid, found.peak);
    }
  };
  const timer = setInterval(look, LOOK_MS);
  let [first, firstCores, last] = [0, 0, 0];
  let out = "";
  child.stdout.on("data", (text) => {
    out += String(text);
    last = performance.now();
    if (first > 0) return;
    first = last;
    look();
    firstCores = cores;
  });
  const code = await new Promise<number | null>((resolve) =>
    child.on("exit", resolve)
  );
  clearInterval(timer);
  // The ranks of a launcher may outlive it.
  while (left.some((pid) => looked(pid).name !== "")) await pause();
  return {
    code,
    firstMs: first - start,
    firstCores,
    endMs: performance.now() - last,
    peaks: [...peaks.values()].sort((a, b) => b - a),
    anonymous,
    out,
  };
}

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 5));
}

/** Returns a process and all its descendants. */
function treeOf(root: number): number[] {
  const parents = readdirSync("/proc").map(Number).filter((pid) => pid > 0)
    .map((pid) => [pid, Number(stat(pid)[1])] as const);
  const tree = [root];
  for (const pid of tree) {
    tree.push(
      ...parents.filter(([, parent]) => parent === pid)
        .map(([child]) => child),
    );
  }
  return tree;
}

/** Returns the fields of a process after its name. Empty if it has ended. */
function stat(pid: number): string[] {
  const text = read(`/proc/${pid}/stat`);
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

/** Seconds of CPU time of a process, or of its children that have ended. 0 if there is no such process. */
export function cpuSeconds(
  pid: number,
  { ofChildren = false }: { readonly ofChildren?: boolean } = {},
): number {
  const fields = stat(pid).slice(ofChildren ? 13 : 11);
  return (Number(fields[0] ?? 0) + Number(fields[1] ?? 0)) / TICKS;
}

function looked(
  pid: number,
): { name: string; cores: number; peak: number; anonymous: number } {
  const status = read(`/proc/${pid}/status`);
  const bytes = (key: string) =>
    Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)?.[1] ?? 0) * 1024;
  const peak = bytes("VmHWM");
  // A zombie process has no memory.
  const ended = peak === 0;
  return {
    name: ended ? "" : /^Name:\s+(.*)/m.exec(status)?.[1] ?? "",
    cores: cpuSeconds(pid),
    peak,
    anonymous: bytes("RssAnon"),
  };
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
