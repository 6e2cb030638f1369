/**
 * Suppresses Dawn's warnings on standard error, which are not useful to users. Dawn writes them to its descriptor
 * during a call; for that time the descriptor is a file. Requires the package `koffi`.
 */

import {
  closeSync,
  fstatSync,
  openSync,
  readSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { importKoffi } from "../koffi.ts";

/** Dawn's message about its adaptation to a driver. */
const ADAPTS = /^Warning: max\w+ artificially reduced from .*\n?/gm;

const STDERR = 2;

interface Descriptors {
  dup(file: number): number;
  dup2(file: number, as: number): number;
  close(file: number): number;
}

/** The C library's file functions, or undefined if they are not available. */
async function openDescriptors(): Promise<Descriptors | undefined> {
  if (process.platform !== "linux") return undefined;
  try {
    const koffi = await importKoffi();
    const library = koffi.load("libc.so.6");
    return {
      dup: library.func("int dup(int)"),
      dup2: library.func("int dup2(int, int)"),
      close: library.func("int close(int)"),
    };
  } catch {
    return undefined;
  }
}

let opened: Promise<Descriptors | undefined> | undefined;

/** Prepares quiet calls. Other output during a call appears after it. */
export async function openQuietly(): Promise<<T>(call: () => T) => T> {
  opened ??= openDescriptors();
  const descriptors = await opened;
  return (call) => descriptors ? quietly(descriptors, call) : call();
}

function quietly<T>({ dup, dup2, close }: Descriptors, call: () => T): T {
  const name = path.join(tmpdir(), `switchyard-${crypto.randomUUID()}`);
  let file: number;
  try {
    file = openSync(name, "wx+", 0o600);
    unlinkSync(name);
  } catch {
    return call();
  }
  const before = dup(STDERR);
  try {
    if (before >= 0) dup2(file, STDERR);
    return call();
  } finally {
    if (before >= 0) {
      dup2(before, STDERR);
      close(before);
    }
    const bytes = new Uint8Array(fstatSync(file).size);
    readSync(file, bytes, 0, bytes.length, 0);
    closeSync(file);
    const said = new TextDecoder().decode(bytes).replace(ADAPTS, "");
    if (said !== "") writeSync(STDERR, said);
  }
}
