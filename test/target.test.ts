// `--target` and `--experts`: machines by name, this machine, and expert loads.

import path from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { ranksOf } from "../cli/commands/summarized.ts";
import { nodeFiles } from "../cli/files.ts";
import type { CliIo } from "../cli/io.ts";
import { findMachine } from "../cli/machines.ts";
import { machineRanks, type Mesh, type PlanSummary } from "../spec/mod.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";

const GRANITE = fileURLToPath(
  new URL("references/configs/granite-3.0-1b-a400m.json", import.meta.url),
);

t.test("--experts determines how long ranks wait", async (t) => {
  // 32 experts, four on each of eight ranks; a token chooses 8.
  const argv = ["plan", GRANITE, "--target", "8xmi300x"];
  const waitingOf = async (...experts: readonly string[]) => {
    const { out, err } = await switchyard([...argv, ...experts, "--json"]);
    t.equal(err, "");
    const { parts, seconds } = (JSON.parse(out) as PlanSummary).predicted!
      .prefill!;
    return parts.waiting / seconds;
  };
  t.equal(await waitingOf(), 0);
  t.equal(await waitingOf("--experts", "even"), 0);
  const mild = await waitingOf("--experts", "zipf:0.5");
  const strong = await waitingOf("--experts", "zipf:3");
  t.ok(mild > 0 && strong > 1.5 * mild, `${mild}, ${strong}`);

  const file = path.join(temporaryFolder(t), "choices.safetensors");
  const record = async (name: string, choices: readonly number[]) => {
    await writeRaw(file, { [name]: integers([1, 8], choices) });
    return ["--experts", file];
  };
  const apart = await record("layer0.topk_idx", [0, 4, 8, 12, 16, 20, 24, 28]);
  t.equal(await waitingOf(...apart), 0, "one choice per rank");
  const together = await record("layer0.topk_idx", [0, 1, 2, 3, 4, 5, 6, 7]);
  t.ok(await waitingOf(...together) > mild, "all choices on two ranks");
  const other = await record("layer0.other", [0, 1, 2, 3, 4, 5, 6, 7]);
  const refused = await switchyard([...argv, ...other]);
  t.strictSame([refused.code, refused.out], [1, ""]);
  t.match(refused.err, "the file has no tensor 'layer{N}.topk_idx'");
  const alone = await switchyard(["plan", GRANITE, "--experts", "even"]);
  t.equal(alone.code, 2);
  t.match(alone.err, "Cannot use --experts without --target");
});

t.test("only --target this is measured, with the ranks of the mesh", async (t) => {
  const io = { files: nodeFiles() } as CliIo;
  const machine = await findMachine(io, "1x24gb");
  const measured: number[] = [];
  const find = (target: string, mesh: Mesh) =>
    findMachine(io, target, {
      ...ranksOf({ mesh }),
      measure: (_, { ranks }) => {
        measured.push(ranks);
        return Promise.resolve(machine);
      },
    });
  const mesh = [{ name: "ep", size: 2 }, { name: "tp", size: 2 }];
  t.equal(await find("this", mesh), machine);
  await find("this", []);
  t.equal(machineRanks(await find("8xh100", mesh)), 8);
  await t.rejects(find("that", mesh), {
    message:
      /Cannot find machine 'that': .* or 'this' to measure this machine$/,
  });
  t.strictSame(measured, [4, 1]);
});

t.test("--target this reads the largest file of the model's weights", async (t) => {
  const io = { files: nodeFiles() } as CliIo;
  const machine = await findMachine(io, "1x24gb");
  const folder = temporaryFolder(t);
  const [first, second] = ["a", "b"].map((name) =>
    path.join(folder, `${name}.safetensors`)
  ) as [string, string];
  await writeRaw(first, { x: integers([8], Array<number>(8).fill(1)) });
  await writeRaw(second, { x: integers([99], Array<number>(99).fill(1)) });
  const fileOf = async (model: string) => {
    let found: string | undefined;
    await findMachine(io, "this", {
      model,
      measure: (_, { file }) => {
        found = file?.name;
        return Promise.resolve(machine);
      },
    });
    return found;
  };
  t.equal(await fileOf(folder), second);
  t.equal(await fileOf(first), first);
  t.equal(await fileOf(GRANITE), undefined, "a configuration");
});
