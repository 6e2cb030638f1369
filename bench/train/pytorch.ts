/** The same steps in PyTorch's CPU build, in a process that runs one step per request. */

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

/** Interpreters that may have PyTorch: the current one, and the system's. */
const INTERPRETERS = ["python3", "/usr/bin/python3"];

/** The training in PyTorch. */
export interface PyTorchOptions {
  readonly weights: { readonly [name: string]: HostTensor };
  readonly threads: number;
}

/** PyTorch, ready for the next step. */
export interface PyTorch {
  readonly version: string;
  /** The library of its matrix products. */
  readonly blas: string;
  /** Runs a step. Returns its loss and its milliseconds in PyTorch. */
  step(): Promise<{ readonly loss: number; readonly ms: number }>;
  close(): void;
}

/** Starts PyTorch. Undefined if no interpreter has it. */
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
    // A missing interpreter emits an event, and then ends like one without PyTorch.
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
