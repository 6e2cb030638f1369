/// <reference types="node" preserve="true" />
/** File access through Node. Errors name the file, and writes replace a file completely or not at all. */

import { constants as buffer } from "node:buffer";
import { constants, existsSync, readdirSync, type Stats } from "node:fs";
import * as fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import type { FileSystem, OpenFile } from "../engine/files.ts";
import { withGguf } from "../engine/gguf/folder.ts";
import { DataError, MachineError } from "../spec/errors.ts";
import { codeOf, makeFolder } from "../runtime/cache/folders.ts";
import { takeLock } from "./lock_file.ts";

/** The operating system calls of file access. Tests make them fail. */
export type Disk = Pick<
  typeof fs,
  | "appendFile"
  | "link"
  | "mkdir"
  | "open"
  | "readFile"
  | "readdir"
  | "realpath"
  | "rename"
  | "rm"
  | "stat"
  | "writeFile"
>;

/** The files of this machine. A GGUF file is treated as a checkpoint folder. */
export function nodeFiles(disk: Disk = fs): FileSystem {
  return withGguf({
    stat: (file) => guard("read", file, () => kindOf(file, disk)),
    resolve: (file) => disk.realpath(file).catch(() => undefined),
    list: (folder) => guard("read", folder, () => disk.readdir(folder)),
    readText: (file) => guard("read", file, () => readText(file, disk)),
    open: (file) => guard("read", file, () => openFile(file, disk)),
    write: (file, parts) =>
      guard("write", file, () => replaceFile(file, parts, disk)),
    append: (file, bytes) =>
      guard("write", file, () => disk.appendFile(file, bytes)),
    makeFolder: (folder) =>
      guard("write", folder, () => makeFolder(folder, { disk })),
    remove: (file) =>
      guard("write", file, () => disk.rm(file, { force: true })),
    lock: (file) => guard("write", file, () => takeLock(file, { disk })),
    join: (folder, name) => path.join(folder, name),
  });
}

/** Converts an error of the operating system to a message. The class distinguishes user errors from machine errors. */
export function fileError(
  error: unknown,
  op: "read" | "write",
  file: string,
): Error {
  const [state, remedy, machine] = SENTENCES[codeOf(error) ?? ""] ??
    [error instanceof Error ? error.message : String(error), "Check it", false];
  const message = `Cannot ${op} '${file}': ${state}. ${remedy}`;
  return machine ? new MachineError(message) : new DataError(message);
}

const SENTENCES: {
  readonly [code: string]: readonly [string, string, boolean];
} = {
  ENOENT: ["there is no such file or folder", "Check the path", false],
  ENOTDIR: ["a part of the path is not a folder", "Check the path", false],
  EISDIR: ["it is a folder", "Give a file", false],
  EEXIST: ["there is a file of that name", "Choose another name", false],
  EACCES: ["permission denied", "Change its permissions", false],
  EPERM: ["permission denied", "Change its permissions", false],
  ELOOP: ["its symbolic links go in a circle", "Check the path", false],
  ENAMETOOLONG: ["the name is too long", "Check the path", false],
  ENOSPC: ["the disk is full", "Free some space", true],
  EDQUOT: ["the disk quota is used up", "Free some space", true],
  EROFS: ["the file system is read-only", "Choose another folder", true],
  EINTR: ["it was interrupted", "Start again", true],
  EIO: ["the disk reports an error", "Check the disk", true],
  EMFILE: ["too many files are open", "Raise the limit (ulimit -n)", true],
};

/** Runs an action on a file and converts its errors to messages. Throws DataError or MachineError. */
export async function guard<T>(
  op: "read" | "write",
  file: string,
  action: () => Promise<T>,
): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof DataError || error instanceof MachineError) {
      throw error;
    }
    throw fileError(error, op, file);
  }
}

async function kindOf(
  file: string,
  disk: Disk,
): Promise<"file" | "folder" | undefined> {
  try {
    const stats = await disk.stat(file);
    if (stats.isDirectory()) return "folder";
    requireRegular(file, stats);
    return "file";
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** Rejects anything but a regular file. Reading a pipe without a writer would wait forever, and a device has no end. */
function requireRegular(file: string, stats: Stats): void {
  if (stats.isFile()) return;
  const [state] = Object.entries({
    "it is a folder": stats.isDirectory(),
    "it is a pipe": stats.isFIFO(),
    "it is a socket": stats.isSocket(),
    "it is a device": true,
  }).find(([, is]) => is)!;
  throw new DataError(`Cannot read '${file}': ${state}. Give a file`);
}

/** Opens a regular file for reading. Other kinds of files are neither opened nor waited for. */
async function openRegular(
  file: string,
  disk: Disk,
): Promise<{ readonly handle: fs.FileHandle; readonly size: number }> {
  // Windows has neither this flag nor pipes in the file system.
  const handle = await disk.open(
    file,
    constants.O_RDONLY | (constants.O_NONBLOCK ?? 0),
  );
  try {
    const stats = await handle.stat();
    requireRegular(file, stats);
    return { handle, size: stats.size };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Maximum bytes of one read. Node.js ends the process if a call requests 2 GiB. */
const MAX_READ = 2 ** 30;

/** Maximum bytes of a file that is read as one text: the limit of a string. */
const LONGEST_TEXT = buffer.MAX_STRING_LENGTH;

async function readText(file: string, disk: Disk): Promise<string> {
  const { handle, size } = await openRegular(file, disk);
  try {
    if (size <= LONGEST_TEXT) return await handle.readFile("utf8");
  } finally {
    await handle.close();
  }
  throw new DataError(
    `Cannot read '${file}': it has ${size} bytes, and at most ${LONGEST_TEXT} are read as text. Give a smaller file`,
  );
}

async function openFile(file: string, disk: Disk): Promise<OpenFile> {
  const { handle, size } = await openRegular(file, disk);
  return {
    size,
    descriptor: handle.fd,
    read: (offset, length) =>
      guard("read", file, async () => {
        const bytes = new Uint8Array(length);
        for (let done = 0; done < length;) {
          const { bytesRead } = await handle.read(
            bytes,
            done,
            Math.min(length - done, MAX_READ),
            offset + done,
          );
          if (bytesRead === 0) {
            throw new DataError(
              `Cannot read '${file}': it ends at byte ${
                offset + done
              }, before byte ${offset + length}. Copy the file again`,
            );
          }
          done += bytesRead;
        }
        return bytes;
      }),
    close: () => guard("read", file, () => handle.close()),
  };
}

// Replaces a file with a complete new one. Special files, such as a pipe or /dev/full, are written directly.
async function replaceFile(
  file: string,
  parts: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  disk: Disk,
): Promise<void> {
  const old = await disk.stat(file).catch(() => undefined);
  if (old?.isDirectory()) {
    throw new DataError(`Cannot write '${file}': it is a folder. Give a file`);
  }
  if (old && !old.isFile()) {
    return await writeTo(await disk.open(file, constants.O_WRONLY), parts);
  }
  const folder = path.dirname(file);
  const part = path.join(
    folder,
    `.${path.basename(file)}.${crypto.randomUUID()}`,
  );
  // Never writes to an existing file, including the target of a link of this name.
  const handle = await disk.open(part, "wx");
  try {
    await writeTo(handle, parts, { sync: true });
    await disk.rename(part, file);
    await syncFolder(folder, disk);
  } catch (error) {
    await disk.rm(part, { force: true });
    throw error;
  }
}

/** Writes to an open file and closes it. */
async function writeTo(
  handle: fs.FileHandle,
  parts: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  { sync = false } = {},
): Promise<void> {
  try {
    for await (const part of parts) await handle.writeFile(part);
    if (sync) await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Makes new names in a folder survive a power failure, if the system supports it. */
async function syncFolder(folder: string, disk: Disk): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await disk.open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Returns whether the system has a graphics device. The answer is yes on systems other than Linux: no cheap check
 * exists there.
 */
export function hasGraphics(): boolean {
  if (process.platform !== "linux") return true;
  const nodes = ["/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/mali0"];
  return nodes.some((path) => existsSync(path)) ||
    (existsSync("/dev/dri") &&
      readdirSync("/dev/dri").some((name) => name.startsWith("renderD")));
}
