/**
 * Class `large`: sparse files of gigabytes as inputs of commands. A command fails with a message, or ignores data that
 * it does not need.
 */

import { truncateSync, writeFileSync } from "node:fs";
import { cp, rename, symlink } from "node:fs/promises";
import path from "node:path";
import fc from "fast-check";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import { copyCheckpoint, switchyard, temporaryFolder } from "../helpers/cli.ts";
import { writeSparse } from "../helpers/sparse.ts";
import { tinyModel } from "../helpers/tiny_training.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";

/** Size and start of a large file. */
interface Case {
  readonly input: keyof ReturnType<typeof commandsIn>;
  /** Its size is 2 ** power + offset bytes. */
  readonly power: number;
  readonly offset: number;
  /** First bytes of the file. */
  readonly begin: string;
}

const IDS = { shape: [1, 3], first: [5, 6, 7] };
const CHOICES = { shape: [1, 3, 2], first: [0, 1, 0, 1, 0, 1] };
const CPU = ["--adapter", "cpu"];

/** Commands by large input, with their allowed exit codes. */
function commandsIn(folder: string) {
  const at = (name: string) => path.join(folder, name);
  const mixtral = checkpointFolder("mixtral-6e");
  const out = ["--outputs", at("out"), ...CPU];
  const tensors = (size: number) => ({
    LARGE: { shape: [Math.ceil(size / 4)] },
  });
  const file = (size: number, begin: string | Uint8Array) => {
    writeFileSync(at("large"), begin);
    truncateSync(at("large"), size);
  };
  const inCheckpoint = (name: string) => (size: number, begin: string) => {
    file(size, begin);
    writeFileSync(at(`checkpoint/${name}`), begin);
    truncateSync(at(`checkpoint/${name}`), size);
  };
  const generate = ["generate", at("checkpoint"), "-p", "Once", "-n", "1"];
  return {
    inputs: {
      make: (size: number) =>
        writeSparse(at("large"), { input_ids: IDS, ...tensors(size) }),
      argv: ["run", mixtral, "--inputs", at("large"), ...out],
      codes: [1],
    },
    trace: {
      make: (size: number) => {
        writeSparse(at("ids"), { input_ids: IDS });
        writeSparse(at("large"), {
          "layer0.topk_idx": CHOICES,
          "layer1.topk_idx": CHOICES,
          ...tensors(size),
        });
      },
      argv: [
        ...["run", mixtral, "--inputs", at("ids"), "--replay", at("large")],
        ...out,
      ],
      codes: [0],
    },
    choices: {
      make: (size: number) =>
        writeSparse(at("large"), {
          "layer0.topk_idx": CHOICES,
          ...tensors(size),
        }),
      argv: [
        ...["view", mixtral, "--choices", at("large"), "--out", at("page")],
      ],
      codes: [0],
    },
    header: {
      make: file,
      argv: ["run", mixtral, "--inputs", at("large"), ...out],
      codes: [1],
    },
    text: {
      // Invalid UTF-8 from the first byte.
      make: (size: number, begin: string) =>
        file(size, Buffer.concat([Uint8Array.of(0xff), Buffer.from(begin)])),
      argv: [
        ...["train", at("tiny"), "--data", at("large"), "--steps", "1"],
        ...["--out", at("trained"), ...CPU],
      ],
      codes: [1],
    },
    plan: { make: file, argv: ["verify", at("large")], codes: [1] },
    prompts: {
      make: file,
      argv: [
        ...["generate", checkpointFolder("demo-lm"), "--prompts", at("large")],
        ...["-n", "1", ...CPU],
      ],
      codes: [1],
    },
    config: {
      make: inCheckpoint("config.json"),
      argv: [...generate, ...CPU],
      codes: [1],
    },
    tokenizer: {
      make: inCheckpoint("tokenizer.json"),
      argv: [...generate, ...CPU],
      codes: [1],
    },
  };
}

/** Commands with one large input. */
export function largeClass(): FuzzClass<Case> {
  const cleanups: (() => void)[] = [];
  const t = { teardown: (clean: () => void) => cleanups.push(clean) };
  const folder = temporaryFolder(t);
  const commands = commandsIn(folder);
  const open = async () => {
    await symlink(await tinyModel(t), path.join(folder, "tiny"));
    await rename(
      await copyCheckpoint("demo-lm", folder),
      path.join(folder, "fresh"),
    );
  };
  let opened: Promise<void> | undefined;
  return {
    name: "large",
    count: 100,
    cases: fc.record({
      input: fc.constantFrom(
        ...Object.keys(commands) as (keyof typeof commands)[],
      ),
      power: fc.integer({ min: 30, max: 34 }),
      offset: fc.integer({ min: -5000, max: 5000 }),
      begin: fc.constantFrom("", "{", '{"a":', "[", '"', "\n\n", "a\n"),
    }),
    async judge({ input, power, offset, begin }) {
      await (opened ??= open());
      const { make, argv, codes } = commands[input];
      const checkpoint = path.join(folder, "checkpoint");
      if (argv.includes(checkpoint)) {
        const fresh = path.join(folder, "fresh");
        await cp(fresh, checkpoint, { recursive: true, force: true });
      }
      make(2 ** power + offset, begin);
      const { code, err } = await switchyard(argv);
      const lines = err.trimEnd().split("\n").filter((line) => line !== "");
      const isReported = code === 0
        ? lines.length === 0
        : lines.length === 1 && /^Cannot (?!go on: an unexpected)/.test(err);
      if (!codes.includes(code) || !isReported) {
        throw new Finding(
          `${input} of 2^${power}${
            offset < 0 ? "" : "+"
          }${offset} bytes, '${begin}': exit code ${code}: ${err}`,
        );
      }
      return `${input}: exit code ${code}`;
    },
    close: () => {
      for (const clean of cleanups) clean();
      return Promise.resolve();
    },
  };
}
