/** `switchyard check`: report the errors in a model, with code frames. */

import { statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { setTimeout } from "node:timers/promises";
import {
  checkTarget,
  type Diagnostic,
  formatDiagnostic,
  openCheckFile,
  parseReference,
} from "../../engine/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { printable } from "../../spec/mod.ts";
import { editorRemark } from "../editor_support.ts";
import type { ModelFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";

/** Flags of `check`. */
export interface CheckFlags extends ModelFlags {
  readonly json?: boolean;
  readonly watch?: boolean;
}

/** Milliseconds between checks of the watched files. */
const LOOK = 50;

/**
 * Checks a model file or a checkpoint folder. The exit code is 1 if there are errors; with `watch`, the last check
 * decides.
 */
export async function checkCommand(
  base: CliIo,
  name: string,
  flags: CheckFlags,
): Promise<number> {
  const { revision } = flags;
  const { io, model } = await locate(base, name, {
    revision,
    extent: "headers",
  });
  const remark = editorRemark(parseReference(model).path);
  if (remark !== undefined && !flags.json) io.err(remark);
  if (flags.watch) return await watch(io, model, flags);
  const found = await checkTarget(model, io.files, flags);
  return await report(io, found, { ...flags, model });
}

/** Repeats the check after each change of a file of the model, until Ctrl-C. */
async function watch(
  io: CliIo,
  model: string,
  flags: CheckFlags,
): Promise<number> {
  if (await io.files.stat(model) === "folder") {
    throw new DataError(
      `Cannot watch '${model}': it is a folder. Give a model file, or leave out --watch`,
    );
  }
  const interrupted = new AbortController();
  const release = io.onInterrupt(() => interrupted.abort());
  const check = await openCheckFile(model);
  let seen = new Map([[resolve(parseReference(model).path), ""]]);
  let code: number;
  do {
    // Recorded before the files are read: otherwise a change could be missed.
    const before = versionsOf([...seen.keys()]);
    const { mistakes, files } = await check();
    // The missing file of an import may be added later. The modification time of its folder then changes.
    const folders = mistakes.length > 0 ? files.map((f) => dirname(f)) : [];
    const now = versionsOf([...files, ...folders]);
    seen = new Map(
      [...now].map(([file, at]) => [file, before.get(file) ?? at]),
    );
    code = await report(io, mistakes, { ...flags, model });
    await changed(seen, interrupted.signal);
  } while (!interrupted.signal.aborted);
  release();
  return code;
}

/** Returns the modification times and sizes of files. An editor may have removed a file for a moment. */
function versionsOf(files: readonly string[]): Map<string, string> {
  return new Map(files.map((file) => {
    const found = statSync(file, { throwIfNoEntry: false });
    return [file, found ? `${found.mtimeMs} ${found.size}` : ""];
  }));
}

/** Waits until a file has changed and is no longer being written, or until the signal. */
async function changed(
  seen: ReadonlyMap<string, string>,
  signal: AbortSignal,
): Promise<void> {
  const differs = (now: ReadonlyMap<string, string>, before = seen) =>
    [...now].some(([file, at]) => at !== "" && at !== before.get(file));
  for (let now = new Map(seen); !signal.aborted;) {
    await setTimeout(LOOK, undefined, { signal }).catch(() => {});
    const last = now;
    now = versionsOf([...seen.keys()]);
    if (differs(now) && !differs(now, last)) return;
  }
}

/** Prints the result. With `watch`, the JSON form is one line per check. */
async function report(
  io: CliIo,
  found: readonly Diagnostic[],
  { json, watch, model }: CheckFlags & { readonly model: string },
): Promise<number> {
  const ok = found.length === 0;
  if (json) {
    const document = { ok, errors: found.map(toJson) };
    await io.out(`${JSON.stringify(document, null, watch ? 0 : 2)}\n`);
  } else if (ok) {
    await io.out(`${model} has no mistakes\n`);
  } else {
    for (const diagnostic of found) {
      io.err(printable(formatDiagnostic(diagnostic)));
    }
  }
  return ok ? 0 : 1;
}

function toJson({ message, span, code }: Diagnostic): object {
  return {
    message,
    ...span ? { file: span.file, line: span.line, column: span.column } : {},
    ...code === undefined ? {} : { code },
  };
}
