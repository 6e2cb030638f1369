// Ranks on several hosts, which are network namespaces of this machine: exchanges cross network interfaces.
// needs: cpu, mpi
// rotates with: runtime/mpi/, cli/launch/mpi_launcher.ts, cli/launch/hosts_file.ts
import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import {
  floats,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "../helpers/cli.ts";
import {
  jobOf,
  launchersInTurn,
  processesLeft,
  processesWith,
  startWith,
  withoutMpi,
} from "../helpers/mpi.ts";
import { createNetwork, networkVariables } from "../helpers/network.ts";
import { repositoryFile } from "../helpers/sessions.ts";

const scratch = temporaryFolder(t);
const network = createNetwork(2, scratch);
const absent = typeof network === "string" ? network : false;

const [inputs, weights, shared, apart, hostsFile, pairsFile] = [
  ...["inputs", "weights", "shared", "apart", "hosts", "pairs"],
].map((name) => path.join(scratch, name)) as [
  ...[string, string, string, string, string, string],
];
await writeRaw(inputs, { x: floats([768, 512], 1) });
await writeRaw(weights, {
  router: floats([8, 512], 0.1),
  ...Object.fromEntries(
    Array.from({ length: 8 }, (_, e) => [
      [`experts.${e}.gate`, floats([1024, 512], 0.05 + e / 1000)],
      [`experts.${e}.up`, floats([1024, 512], 0.05 - e / 1000)],
      [`experts.${e}.down`, floats([512, 1024], 0.04 + e / 1000)],
    ]).flat(),
  ),
});
const MODEL = [
  ...["run", repositoryFile("examples/layer.ts"), "--inputs", inputs],
  ...["--weights", weights, "--adapter", "cpu"],
];
const RUN = [...MODEL, "--mesh", "ep=3"];

interface Report {
  readonly ranks: readonly {
    readonly sentBytes: {
      readonly [op: string]: { readonly actual: number };
    };
  }[];
}

for (const launcher of launchersInTurn()) {
  t.test(`${launcher.name}: three ranks on two hosts`, {
    skip: launcher.skip || absent,
  }, async (t) => {
    if (typeof network === "string") return;
    const [near, far] = network.hosts as [string, string];
    await writeFile(hostsFile, `${near} slots=2\n${far}\n`);
    const onHost = {
      via: [network.agent, near],
      env: networkVariables(launcher.family, network),
    };
    const launch = (argv: readonly string[], env = {}) =>
      startWith(launcher, scratch, [
        ...["launch", "-n", "3", "--hosts", hostsFile, "--", ...argv],
      ], { ...onHost, env: { ...onHost.env, ...env } }).ended;

    await t.test("compute the bytes of a shared device", async (t) => {
      const wanted = await switchyard([...RUN, "--outputs", shared]);
      t.equal(wanted.code, 0);
      const before = network.received(near);
      const { code, out, err } = await launch([
        ...[...RUN, "--json", "--outputs", apart],
      ]);
      const received = network.received(near) - before;
      t.strictSame([code, withoutMpi(err)], [0, ""]);
      t.ok(readFileSync(apart).equals(readFileSync(shared)), "the same bytes");
      const { ranks } = JSON.parse(out) as Report;
      // All bytes that the only rank of the other host sends are received here.
      const sent = Object.values(ranks[2]!.sentBytes)
        .reduce((sum, { actual }) => sum + actual, 0);
      t.ok(sent > 1_000_000, `${sent} bytes were sent`);
      t.ok(received > sent, `${received} bytes came through the interface`);
      t.ok(received < 4 * sent, "with little overhead");
    });

    await t.test("exchange hierarchically", async (t) => {
      await writeFile(pairsFile, `${near} slots=2\n${far} slots=2\n`);
      const { code, err } = await startWith(launcher, scratch, [
        ...["launch", "-n", "4", "--hosts", pairsFile, "--", ...MODEL],
        ...["--mesh", "node=2,ep=2", "--outputs", apart],
      ], onHost).ended;
      t.strictSame([code, withoutMpi(err)], [0, ""]);
      t.ok(readFileSync(apart).equals(readFileSync(shared)), "the same bytes");
    });

    await t.test("end when the rank on the other host is killed", async (t) => {
      const fault = new URL("../helpers/fault.mjs", import.meta.url);
      const { code, err } = await launch([...RUN, "--outputs", apart], {
        NODE_OPTIONS: `--import=${fileURLToPath(fault)}`,
        SWITCHYARD_FAULT: JSON.stringify({ rank: 2, kind: "kill" }),
      });
      t.equal(code, 3);
      t.match(
        withoutMpi(err).replace(/^fault at \d+\n/m, ""),
        new RegExp(
          `^Cannot finish: rank 2 on ${far} was killed by signal 9 in step 'dispatch[^']*'\\. Start the command again\\n$`,
        ),
        err,
      );
      t.strictSame(
        await processesLeft(jobOf(scratch)),
        [],
        "no process is left",
      );
    });

    await t.test("end when the user stops the job", async (t) => {
      const { ended, printed } = startWith(launcher, scratch, [
        ...["launch", "-n", "3", "--hosts", hostsFile, "--", "generate"],
        ...[checkpointFolder("demo-lm"), "--prompt", "Once"],
        ...["--max-new-tokens", "500", "--max-context", "510"],
        ...["--temperature", "1", "--adapter", "cpu"],
      ], onHost);
      await printed;
      // The parent processes of 'launch' replace a shell on that host.
      const [launch, ...others] = processesWith(hostsFile);
      t.strictSame(others, []);
      process.kill(launch!, "SIGINT");
      const { code, err } = await ended;
      t.strictSame([code, withoutMpi(err)], [130, ""]);
      const job = jobOf(scratch);
      t.strictSame(await processesLeft(job), [], "no process is left");
      t.notOk(existsSync(job), "no shared memory is left");
    });
  });
}
