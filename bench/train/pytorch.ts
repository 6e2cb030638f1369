/** The same steps in PyTorch's CPU build, in a process that takes one whenever it is asked to. */

import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { type HostTensor, writeSafetensors } from "../../runtime/mod.ts";
import { batchOf, type Configuration, STEP } from "./training.ts";

const SCRIPT = fileURLToPath(new URL("olmoe.py", import.meta.url));

/** Interpreters that may have PyTorch: the one in use, and the system's own. */
const INTERPRETERS = ["python3", "/usr/bin/python3"];

/** What PyTorch trains. */
export interface PyTorchOptions {
  readonly weights: { readonly [name: string]: HostTensor };
  readonly threads: number;
}

/** PyTorch, waiting for the next step. */
export interface PyTorch {
  readonly version: string;
  /** The library that multiplies its matrices. */
  readonly blas: string;
  /** Take a step; gives its loss and how many milliseconds it took there. */
  step(): Promise<{ readonly loss: number; readonly ms: number }>;
  close(): void;
}

/** Start it; undefined where no interpreter has PyTorch. */
export async function startPyTorch(
  config: Configuration,
  { weights, threads }: PyTorchOptions,
): Promise<PyTorch | undefined> {
  const folder = mkdtempSync(join(tmpdir(), "switchyard-"));
  const file = (name: string) => join(folder, name);
  const { ids, labels } = batchOf(config);
  writeFileSync(file("config.json"), JSON.stringify(config));
  writeFileSync(file("model.safetensors"), writeSafetensors(weights));
  writeFileSync(
    file("batch.json"),
    JSON.stringify({ ...STEP, ids: [...ids], labels: [...labels] }),
  );
  const argv = [
    ...[SCRIPT, file("config.json"), file("model.safetensors")],
    ...[file("batch.json"), String(threads)],
  ];
  for (const interpreter of INTERPRETERS) {
    const child = spawn(interpreter, argv);
    // A missing interpreter is reported by an event; it ends like one that lacks PyTorch.
    child.on("error", () => {});
    child.stderr.resume();
    const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
    const first = await lines.next();
    if (first.done === true) continue;
    const about = JSON.parse(first.value) as Pick<PyTorch, "version" | "blas">;
    return {
      ...about,
      step: async () => {
        child.stdin.write("step\n");
        const line = await lines.next();
        return JSON.parse(String(line.value)) as { loss: number; ms: number };
      },
      close: () => {
        void end(child, folder);
      },
    };
  }
  rmSync(folder, { recursive: true });
  return undefined;
}

async function end(
  child: ChildProcessWithoutNullStreams,
  folder: string,
): Promise<void> {
  child.stdin.end();
  await once(child, "exit");
  rmSync(folder, { recursive: true });
}
