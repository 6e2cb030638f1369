/**
 * Process of a training that kills itself: `train_child.ts JSON`. Prints each completed step. `killAt`: the write at
 * which it is killed.
 */

import { createReadStream } from "node:fs";
import process from "node:process";
import {
  type FileSystem,
  trainCheckpoint,
  type TrainOptions,
} from "../../engine/mod.ts";
import { files } from "./checkpoints.ts";
import { tinyOptions } from "./tiny_training.ts";

const { model, text, out, mesh, steps, resume, killAt, more } = JSON.parse(
  process.argv[2]!,
) as {
  readonly model: string;
  /** File to train on. */
  readonly text: string;
  readonly out: string;
  readonly mesh: string;
  readonly steps: number;
  readonly resume: boolean;
  /** Index of the file change before which the process is killed. Default: never. */
  readonly killAt?: number;
  /** Additional options. */
  readonly more?: Pick<TrainOptions, "dtype" | "zero">;
};

let touches = 0;

/** Counts changes of checkpoint files on disk. */
function touch(path: string): void {
  if (!/safetensors/.test(path)) return;
  if (touches++ === killAt) process.kill(process.pid, "SIGKILL");
}

/** Files of this machine that count each written part, rename and removal. */
const touched: FileSystem = {
  ...files,
  write: async (path, parts) => {
    async function* counted() {
      for await (const part of parts) {
        touch(path);
        yield part;
      }
      touch(path);
    }
    await files.write(path, counted());
    touch(path);
  },
  remove: async (path) => {
    touch(path);
    await files.remove(path);
  },
};

const options = tinyOptions(mesh, steps, {
  out,
  resume,
  saveEvery: 1,
  ...more,
  data: [() => createReadStream(text, "utf8")],
});
const run = trainCheckpoint(resume ? out : model, touched, options);
for await (const { step } of run) console.log(step);
