/**
 * A training in a process of its own, to be killed: `train_child.ts JSON`. It says every step that is done, and can kill
 * itself at some point of writing.
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
  /** A file to train on. */
  readonly text: string;
  readonly out: string;
  readonly mesh: string;
  readonly steps: number;
  readonly resume: boolean;
  /** Before which touch of a file of a checkpoint; absent: never. */
  readonly killAt?: number;
  /** Options besides. */
  readonly more?: Pick<TrainOptions, "dtype" | "zero">;
};

let touches = 0;

/** Something is about to change on disk. */
function touch(path: string): void {
  if (!/safetensors/.test(path)) return;
  if (touches++ === killAt) process.kill(process.pid, "SIGKILL");
}

/** The files of this machine, with a touch before each piece that is written, each rename and each removal. */
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
