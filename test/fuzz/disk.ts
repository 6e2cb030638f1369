/**
 * Class `disk`: a command whose disk fails at any call reports the file and the error, and leaves each file with its
 * old or its complete new contents, and no other files.
 */

import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import fc from "fast-check";
import { nodeFiles } from "../../cli/files.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import {
  type Finished,
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "../helpers/cli.ts";
import {
  type Fault,
  FAULTS,
  type FaultyDisk,
  faultyDisk,
  kindOf,
  wrongMessage,
} from "../helpers/faulty_disk.ts";
import { TEXT, tinyModel } from "../helpers/tiny_training.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";

/** Numbers are taken modulo the number of choices. */
interface Case {
  readonly command: number;
  readonly call: number;
  readonly fault: Fault;
}

/** Files by name, in hexadecimal. */
type Contents = ReadonlyMap<string, string>;

/** A command, with its disk calls and files without faults. */
interface Command {
  readonly argv: readonly string[];
  /** Folder that is copied before each run. */
  readonly before: string;
  readonly calls: readonly string[];
  readonly good: Contents;
  readonly old: Contents;
}

/** Files that contain times. */
const VARIES = /\.(jsonl|svg)$/;

async function contentsOf(folder: string): Promise<Contents> {
  const names = await readdir(folder, { recursive: true });
  const read = names.sort().map(async (name) =>
    [
      name,
      await readFile(path.join(folder, name), "hex").catch(() => "a folder"),
    ] as const
  );
  return new Map(await Promise.all(read));
}

const CPU = ["--adapter", "cpu"];
const TRAIN = [...["--data", TEXT, "--json"], ...CPU];
const BEGIN = [...TRAIN, "--batch", "2", "--length", "8"];

/** Commands that read checkpoints and plans, and write outputs, plans and trainings. */
export function diskClass(): FuzzClass<Case> {
  const cleanups: (() => void)[] = [];
  const t = { teardown: (clean: () => void) => cleanups.push(clean) };
  const scratch = temporaryFolder(t);
  const here = path.join(scratch, "here");
  const run = async (
    { argv, before }: Pick<Command, "argv" | "before">,
    { disk }: FaultyDisk,
  ): Promise<Finished> => {
    await rm(here, { recursive: true, force: true });
    await cp(before, here, { recursive: true });
    return await switchyard(argv, nodeFiles(disk));
  };
  const open = async (
    before: string,
    argv: readonly string[],
  ): Promise<Command> => {
    const faulty = faultyDisk(-1, "short");
    const { code, err } = await run({ before, argv }, faulty);
    if (code !== 0) throw new Error(err);
    return {
      before,
      argv,
      calls: faulty.calls.map(kindOf),
      good: await contentsOf(here),
      old: await contentsOf(before),
    };
  };
  const openAll = async (): Promise<readonly Command[]> => {
    const before = path.join(scratch, "before");
    await mkdir(path.join(before, "model"), { recursive: true });
    const mixtral = checkpointFolder("mixtral-6e");
    for (const name of ["config.json", "model.safetensors"]) {
      await cp(path.join(mixtral, name), path.join(before, "model", name));
    }
    for (const name of ["out", "plan"]) {
      await writeFile(path.join(before, name), "what was there");
    }
    const input_ids = integers([1, 3], [5, 6, 7]);
    await writeRaw(path.join(before, "in"), { input_ids });
    const at = (name: string) => path.join(here, name);
    const tiny = await tinyModel(t);
    const trained = ["train", tiny, "--out", at("trained"), "--steps", "1"];
    const begun = await open(before, [...trained, ...BEGIN]);
    const after = path.join(scratch, "after");
    await cp(here, after, { recursive: true });
    const demo = checkpointFolder("demo-lm");
    return [
      begun,
      await open(after, [
        ...["train", at("trained"), "--out", at("trained"), "--resume"],
        ...[...TRAIN, "--steps", "2"],
      ]),
      await open(before, ["plan", at("model"), "--out", at("plan")]),
      await open(before, [
        ...["run", at("model"), "--inputs", at("in"), "--outputs", at("out")],
        ...CPU,
      ]),
      await open(before, [
        ...["generate", demo, "--prompt", "Once", "--max-new-tokens", "1"],
        ...CPU,
      ]),
    ];
  };
  let opened: Promise<readonly Command[]> | undefined;
  return {
    name: "disk",
    count: 200,
    cases: fc.record({
      command: fc.nat(1000),
      call: fc.nat(100_000),
      fault: fc.constantFrom(...FAULTS),
    }),
    async judge({ command: number, call, fault }) {
      const commands = await (opened ??= openAll());
      const command = commands[number % commands.length]!;
      const at = call % command.calls.length;
      const faulty = faultyDisk(at, fault);
      const { code, err } = await run(command, faulty);
      const title = `${command.argv[0]}: ${fault} at call ${at}, '${
        command.calls[at]
      }'`;
      // A run continues without tunings that it cannot read.
      const message = err.replace(/^.* This run does without tunings\n/, "");
      const wrong = code === 0
        ? undefined
        : code === 3
        ? wrongMessage(message, faulty.failed, fault)
        : `exit code ${code}: ${err}`;
      if (wrong !== undefined) throw new Finding(`${title}: ${wrong}`);
      const found = await contentsOf(here);
      const { good, old } = command;
      const names = [found, good, old].flatMap((files) => [...files.keys()]);
      for (const name of new Set(names)) {
        const is = found.get(name);
        if (is !== undefined && VARIES.test(name)) continue;
        if (is === good.get(name)) continue;
        if (code !== 0 && is === old.get(name)) continue;
        throw new Finding(
          `${title}: exit code ${code}, and '${name}' is wrong`,
        );
      }
      return code === 0 ? "done all the same" : "named, and nothing broken";
    },
    close: () => {
      for (const clean of cleanups) clean();
      return Promise.resolve();
    },
  };
}
