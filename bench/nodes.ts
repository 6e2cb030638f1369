/**
 * Two-level exchanges: one dispatch and combine on two nodes, in one level and in two, over a throttled link. Nodes are
 * network namespaces of this machine. Flags: `--ranks 2,4` (per node), `--megabits N` (of a node's link; default 40),
 * `--runs N` (interleaved; default 5), `--mpi NAME`. With `--context FOLDER`, measures prefill of 1,000 tokens in steps
 * of 256 with a checkpoint, whose positions are sharded over all ranks (`cp`).
 */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { floats, integers, writeRaw } from "../test/helpers/cli.ts";
import { LAUNCHERS, startWith } from "../test/helpers/mpi.ts";
import {
  createNetwork,
  type Network,
  networkVariables,
} from "../test/helpers/network.ts";
import { median } from "./measure.ts";

const flags = parseArgs({
  options: {
    ranks: { type: "string", default: "2,4" },
    megabits: { type: "string", default: "40" },
    runs: { type: "string", default: "5" },
    mpi: { type: "string", default: "MPICH" },
    context: { type: "string" },
  },
}).values;

/** Eight of 16 experts, each a product with a row, so that exchanges take the time. */
const MODEL = `import {
  combine, dispatch, dot, model, mul, route, upTo,
} from "switchyard-moe";

export const layer = model({ token: upTo(512), embed: 512, expert: 16 }, (m) => {
  const x = m.input("x", "token embed");
  const routing = route(dot(x, m.param("router", "expert embed"), "embed"), {
    over: "expert", topK: 8, preset: "mixtral",
  });
  const w = m.param("experts.{expert}.w", "expert embed");
  return { y: combine(mul(dispatch(x, routing), w), routing) };
});
`;

const launcher = LAUNCHERS.find(({ name }) => name === flags.mpi);
if (!launcher || launcher.skip) throw new Error(`no ${flags.mpi} here`);
const scratch = mkdtempSync(path.join(tmpdir(), "switchyard-nodes-"));
process.once("exit", () => rmSync(scratch, { recursive: true, force: true }));
const network = networkOf(createNetwork(2, scratch));
const problem = network.throttle(Number(flags.megabits));
if (problem !== undefined) throw new Error(problem);
const [near, far] = network.hosts as [string, string];
const [file, inputs, weights] = ["layer.ts", "inputs", "weights"].map((name) =>
  path.join(scratch, name)
) as [string, string, string];
writeFileSync(file, MODEL);
await writeRaw(inputs, { x: floats([512, 512], 1) });
await writeRaw(weights, {
  router: floats([16, 512], 0.1),
  ...Object.fromEntries(
    Array.from({ length: 16 }, (_, e) => [
      `experts.${e}.w`,
      floats([512], 1 + e / 100),
    ]),
  ),
});

/** The network. Throws an Error with the reason why there is none. */
function networkOf(network: Network | string): Network {
  if (typeof network === "string") throw new Error(network);
  return network;
}

const LAYER = ["run", file, "--inputs", inputs, "--weights", weights];

/** Milliseconds of a run, bytes that a node received, and the outputs. */
async function measure(mesh: string, ranks: number, argv = LAYER) {
  const [hosts, outputs] = ["hosts", "outputs"].map((name) =>
    path.join(scratch, name)
  ) as [string, string];
  writeFileSync(hosts, `${near} slots=${ranks}\n${far} slots=${ranks}\n`);
  const before = network.received(near);
  const { code, out, err } = await startWith(launcher!, scratch, [
    ...["launch", "-n", String(2 * ranks), "--hosts", hosts, "--"],
    ...[...argv, "--adapter", "cpu", "--json"],
    ...["--mesh", ...mesh.split(" "), "--outputs", outputs],
  ], {
    via: [network.agent, near],
    env: networkVariables(launcher!.family, network),
  }).ended;
  if (code !== 0) throw new Error(err);
  const { timing } = JSON.parse(out) as { timing: { runMs: number } };
  return {
    ms: timing.runMs,
    bytes: network.received(near) - before,
    outputs: readFileSync(outputs),
  };
}

/** Measures prefill with shared positions. */
async function measureContext(folder: string, ranks: number): Promise<void> {
  const ids = path.join(scratch, "ids");
  const prompt = Array.from({ length: 1000 }, (_, i) => i % 90);
  await writeRaw(ids, { input_ids: integers([1, 1000], prompt) });
  const argv = [
    ...["run", folder, "--inputs", ids, "--max-tokens", "256"],
    ...["--max-context", "1024", "--max-sequences", "1"],
  ];
  const runs: { readonly ms: number; readonly bytes: number }[] = [];
  for (let run = 0; run < Number(flags.runs); run++) {
    runs.push(await measure(`cp=${2 * ranks}`, ranks, argv));
  }
  console.log(
    `2 nodes of ${ranks} ranks, ${flags.megabits} Mbit/s, cp=${2 * ranks}: ${
      median(runs.map(({ ms }) => ms)).toFixed(0)
    } ms, ${(runs[0]!.bytes / 1e6).toFixed(2)} MB to a node`,
  );
}

for (const ranks of flags.ranks.split(",").map(Number)) {
  if (flags.context !== undefined) {
    await measureContext(flags.context, ranks);
    continue;
  }
  const one = `ep=${2 * ranks}`;
  const meshes = [one, `${one} --deduplicate`, `node=2,ep=${ranks}`];
  const found = new Map(meshes.map((mesh) => [mesh, [] as number[]]));
  let wanted: Buffer | undefined;
  const bytes = new Map<string, number>();
  for (let run = 0; run < Number(flags.runs); run++) {
    for (const mesh of meshes) {
      const result = await measure(mesh, ranks);
      found.get(mesh)!.push(result.ms);
      bytes.set(mesh, result.bytes);
      wanted ??= result.outputs;
      if (!result.outputs.equals(wanted)) {
        throw new Error(`${mesh}: other bytes`);
      }
    }
  }
  const two = median(found.get(meshes.at(-1)!)!);
  for (const mesh of meshes) {
    const ms = median(found.get(mesh)!);
    console.log(
      `2 nodes of ${ranks} ranks, ${flags.megabits} Mbit/s, ${mesh}: ${
        ms.toFixed(0)
      } ms, ${(bytes.get(mesh)! / 1e6).toFixed(2)} MB to a node, ${
        (ms / two).toFixed(2)
      } of two levels`,
    );
  }
}
