/** First steps of a new user: misspelled names, saved weights, dropped choices. */
// needs: cpu

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import { nodeFiles } from "../cli/files.ts";
import { readTensors } from "../engine/mod.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { repositoryFile } from "./helpers/sessions.ts";

const FOLDER = temporaryFolder(t);
const LAYER = repositoryFile("examples/layer.ts");
const TWO = repositoryFile("examples/two_moe.ts");
const file = (name: string) => path.join(FOLDER, name);
const cpu = ["--adapter", "cpu"];

/** Writes a copy of examples/layer.ts with a change. */
function changed(name: string, from: string, to: string): string {
  const text = readFileSync(LAYER, "utf8");
  t.ok(text.includes(from), from);
  writeFileSync(file(name), text.replace(from, to));
  return file(name);
}

async function refused(argv: readonly string[], message: string, code = 1) {
  const found = await switchyard(argv);
  t.equal(found.code, code);
  t.equal(found.err.split("\n")[0], message);
}

t.test("mesh axes without a default placement are rejected with a suggestion", async (t) => {
  const plan = ["plan", LAYER, "--mesh"];
  await refused(
    [...plan, "pp=2,ep=4"],
    "Cannot place 0 layers on 2 stages: a stage would have none. Number the blocks of layers, such as layers.0, or leave pp out",
  );
  await refused(
    [...plan, "cp=4"],
    "Cannot use mesh axis 'cp': the model has no attention over a cache whose positions it could shard. Remove it from the mesh",
  );
  const unknown = (name: string, remedy: string) =>
    `Cannot use mesh axis '${name}': only dp, ep, tp, cp and pp have a default placement. ${remedy}, or name the tensor axes to shard over it with --place, for example --place expert=${name},token=${name}`;
  await refused([...plan, "pe=4"], unknown("pe", "Write ep=4"));
  await refused([...plan, "data=2"], unknown("data", "Write dp=2"));
  await refused([...plan, "rows=2"], unknown("rows", "Use one of them"));
  const { code, err } = await switchyard([
    ...[...plan, "rows=2", "--place", "expert=rows,token=rows"],
  ]);
  t.strictSame([code, err], [0, ""], "--place declares a name");
});

t.test("misspelled options of 'route'", async (t) => {
  await refused(
    ["plan", changed("top_k.ts", "topK: 2", "top_k: 2")],
    "Cannot route with option 'top_k': it is unknown. Write 'topK'",
  );
  await refused(
    ["plan", changed("none.ts", "topK: 2,", "")],
    "Cannot route: 'topK' is missing. Give the number of experts of a token, such as topK: 2",
  );
  await refused(
    ["plan", changed("other.ts", "topK: 2", "topK: 2, bananas: 3")],
    "Cannot route with option 'bananas': it is unknown. Options are over, preset, slot, choice, topK, score, normalize, epsilon, minSum, weighs, scale, noisy, expertGroups, capacity, group, noise, bias, mask, random, choices, weights",
  );
  const { err } = await switchyard([
    ...["plan", changed("many.ts", "topK: 2", "topK: 99")],
  ]);
  t.match(
    err,
    /topK: 99,\n +\| +\^\^\n?$/,
    "a value on its own line is underlined",
  );
});

t.test("run --random saves the weights that it drew", async (t) => {
  const run = ["run", TWO, ...cpu, "--random"];
  const [weights, drawn, read] = ["weights", "drawn", "read"].map(file);
  const saving = [...run, "--save-weights", weights!, "--outputs", drawn!];
  t.equal((await switchyard(saving)).code, 0);
  const argv = [...run, "--weights", weights!, "--mesh", "ep=2"];
  t.equal((await switchyard([...argv, "--outputs", read!])).code, 0);
  t.ok(readFileSync(read!).equals(readFileSync(drawn!)), "the same outputs");
  const why =
    "Cannot use --save-weights: the weights are not drawn. Give --random and no --weights, or leave it out";
  await refused([...argv, "--save-weights", file("again")], why, 2);
  t.notOk(existsSync(file("again")));
  const text = readFileSync(TWO, "utf8");
  writeFileSync(file("renamed.ts"), text.replace('"gate"', '"gaet"'));
  await refused(
    ["run", file("renamed.ts"), ...cpu, "--random", "--weights", weights!],
    `Cannot load '${weights}': tensor 'layers.0.moe.shared.gaet' is missing. Its tensor 'layers.0.moe.shared.gate' is not used: correct one of the names`,
  );
});

t.test("run reports choices dropped by capacity, equal on every mesh", async (t) => {
  const run = ["run", repositoryFile("examples/fairscale.ts"), ...cpu];
  const counted: unknown[] = [];
  for (const mesh of ["ep=1", "ep=2"]) {
    const argv = [...run, "--random", "--mesh", mesh];
    const to = file("capacity");
    const { out } = await switchyard([...argv, "--outputs", to, "--json"]);
    counted.push(JSON.parse(out).dropped);
    t.notMatch(readFileSync(to, "latin1").slice(0, 999), /dropped/, "a count");
    const [, dropped, chosen] =
      /\nrouting 0: dropped (\d+) of (\d+) choices of experts\n/
        .exec((await switchyard(argv)).out)!;
    counted.push([
      { routing: 0, chosen: Number(chosen), dropped: Number(dropped) },
    ]);
    // Slots of the choices; -1 means dropped.
    const { slot } = await readTensors(to, nodeFiles());
    t.equal(
      slot!.data.filter((n) => n === -1).length,
      Number(dropped),
      "matches the slots",
    );
  }
  for (const one of counted) t.strictSame(one, counted[0]);
  const dropless = await switchyard(["run", LAYER, ...cpu, "--random"]);
  t.notMatch(dropless.out, /dropped/);
});

t.test("view --choices of a user's model with any output name", async (t) => {
  const model = changed(
    "named.ts",
    "return { y:",
    "return { experts: routing.index, y:",
  );
  const mesh = ["--mesh", "ep=2"];
  const [outputs, page] = [file("outputs"), file("page.html")];
  const run = ["run", model, "--random", ...mesh, ...cpu];
  t.equal((await switchyard([...run, "--outputs", outputs])).code, 0);
  const view = ["view", model, ...mesh, "--out", page, "--choices"];
  const shown = await switchyard([...view, outputs]);
  t.strictSame([shown.code, shown.err], [0, ""]);
  t.match(readFileSync(page, "utf8"), /"output":"experts"/);
  const plain = ["run", LAYER, "--random", ...mesh, ...cpu];
  t.equal((await switchyard([...plain, "--outputs", file("y")])).code, 0);
  await refused(
    [...view, file("y")],
    `Cannot show choices of '${
      file("y")
    }': it has no output of the model with the experts of each token. Return 'routing.index' from the model, and give a file that 'run --outputs' wrote`,
  );
});

t.test("--help states defaults of --seed and -n, and --json the ending of a text", async (t) => {
  const { out } = await switchyard(["generate", "--help"]);
  const plain = out.replace(/\s+/g, " ");
  t.match(plain, /Default: generation_config\.json, else 128 \(chat: 1024\)\./);
  t.match(
    plain,
    /Sampling seed; prompts of a batch draw different numbers\. Default: 0\./,
  );
  const generated = await switchyard([
    ...["generate", repositoryFile("examples/demo-lm"), ...cpu, "--json"],
    ...["-p", "Once", "-n", "2"],
  ]);
  t.equal(JSON.parse(generated.out).sequences[0].ending, "length");
});
