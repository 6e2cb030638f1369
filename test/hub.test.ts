/** Models by name: fetched from a hub server, cached in the standard layout, used like folders. */
// needs: cpu
// rotates with: cli/hub

import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { nodeFiles } from "../cli/files.ts";
import { parseHubName } from "../cli/hub_name.ts";
import { type HubSettings, hubSettings } from "../cli/hub_settings.ts";
import { main } from "../cli/main.ts";
import { quantizeCheckpoint } from "../engine/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import { temporaryFolder, withOutput } from "./helpers/cli.ts";
import {
  commitOf,
  type HubFaults,
  type HubFiles,
  type HubServer,
  serveHub,
} from "./helpers/hub_server.ts";
import { skipUnasked } from "./helpers/needs.ts";

const COMMIT = commitOf("main");
const DEMO = "someone/demo-lm";
const SHARDED = "someone/qwen2moe";

/** Files of a checkpoint as on the hub, including unneeded ones. */
function modelFiles(name: string): HubFiles {
  const folder = checkpointFolder(name);
  const unneeded = /^(reference|train_)|README/;
  return {
    ...Object.fromEntries(
      readdirSync(folder).filter((file) => !unneeded.test(file))
        .map((
          file,
        ) => [file, new Uint8Array(readFileSync(join(folder, file)))]),
    ),
    "README.md": Buffer.from("# A model"),
    "modeling.py": Buffer.from("raise SystemExit"),
    "pytorch_model.bin": new Uint8Array(10_000),
  };
}

const MODELS = {
  [DEMO]: modelFiles("demo-lm"),
  [SHARDED]: modelFiles("qwen2moe-8e"),
};

/** Size of the weights of a checkpoint with one file. */
const WEIGHT_BYTES = MODELS[DEMO]!["model.safetensors"]!.length;

/** Starts a server and creates a cache; returns commands that use them. */
async function startHub(
  t: Test,
  faults: HubFaults = {},
  models: { readonly [repo: string]: HubFiles } = MODELS,
) {
  const server = await serveHub(models, faults);
  t.teardown(() => server.close());
  const cache = temporaryFolder(t);
  return { server, cache, ...commandsOf(server, cache) };
}

function commandsOf({ endpoint }: Pick<HubServer, "endpoint">, cache: string) {
  const hub = (settings: Partial<HubSettings>) => ({
    ...hubSettings({ HF_ENDPOINT: endpoint, HF_HUB_CACHE: cache }),
    tokenFile: undefined,
    retryMs: 0,
    ...settings,
  });
  return {
    run: (argv: readonly string[], settings: Partial<HubSettings> = {}) =>
      withOutput((io) => main(argv, io), {
        files: nodeFiles(),
        hub: hub(settings),
      }),
  };
}

t.test("names are distinguished from paths", (t) => {
  t.strictSame(parseHubName("allenai/OLMoE-1B-7B-0924"), {
    repo: "allenai/OLMoE-1B-7B-0924",
    revision: undefined,
    file: undefined,
  });
  t.strictSame(parseHubName("a/b@refs/pr/1/x-q4_k.gguf"), {
    repo: "a/b",
    revision: "refs/pr/1",
    file: "x-q4_k.gguf",
  });
  for (
    const path of [
      "model.ts",
      "folder/model.ts",
      "folder/plan.json",
      "folder/model.gguf",
      "a/b/c",
      "./a/b",
      "../a",
      "/a/b",
      "a/..",
      "a/b@../c",
      "a/b@x/../y",
      "",
    ]
  ) t.equal(parseHubName(path), undefined, path);
  t.end();
});

t.test("settings use the environment variables of the hub's programs", (t) => {
  const { endpoint, cache, tokenFile, token, offline } = hubSettings({
    HF_HOME: "/x",
    HF_ENDPOINT: "http://mirror/",
    HF_TOKEN: " hf_a\n",
    HF_HUB_OFFLINE: "true",
  });
  t.strictSame(
    { endpoint, cache, tokenFile, token, offline },
    {
      endpoint: "http://mirror",
      cache: join("/x", "hub"),
      tokenFile: join("/x", "token"),
      token: "hf_a",
      offline: true,
    },
  );
  t.equal(hubSettings({ HF_HOME: "/x", HF_HUB_CACHE: "/y" }).cache, "/y");
  t.equal(hubSettings({ HF_HUB_OFFLINE: "0" }).offline, false);
  t.end();
});

t.test("pull fetches the files of a checkpoint once", async (t) => {
  const { server, cache, run } = await startHub(t);
  const { code, out, err } = await run(["pull", SHARDED]);
  t.equal(code, 0, err);
  const folder = out.trim();
  const repo = join(cache, "models--someone--qwen2moe");
  t.equal(folder, join(repo, "snapshots", COMMIT));
  t.equal(readFileSync(join(repo, "refs/main"), "utf8"), COMMIT);
  const original = checkpointFolder("qwen2moe-8e");
  const names = readdirSync(folder).sort();
  t.match(names.join(" "), /^config.json .*model-00004-of-00004.safetensors/);
  t.notMatch(names.join(" "), /README|\.py|\.bin/);
  for (const name of names) {
    t.strictSame(
      readFileSync(join(folder, name)),
      readFileSync(join(original, name)),
      name,
    );
    t.match(
      readlinkSync(join(folder, name)),
      /^\.\.\/\.\.\/blobs\/[0-9a-f]{40}/,
    );
  }
  t.strictSame(
    readdirSync(join(repo, "blobs")).filter((name) => /\./.test(name)),
    [],
  );
  t.match(err, /^Fetching 2 files, .* of someone\/qwen2moe\n|Fetching/);
  const { sent } = server;
  const second = await run(["pull", SHARDED]);
  t.equal(second.out, out);
  t.equal(second.err, "");
  t.equal(server.sent, sent, "nothing is sent again");
  server.requests.length = 0;
  await run(["pull", `${SHARDED}@${COMMIT}`]);
  t.strictSame(server.requests, [], "a cached commit needs no request");
});

t.test(
  "a name generates the text of its folder, also offline",
  { skip: skipUnasked("cpu") },
  async (t) => {
    const { server, run } = await startHub(t);
    const argv = ["-p", "Once upon", "-n", "3", "--adapter", "cpu"];
    const wanted = await run([
      "generate",
      checkpointFolder("demo-lm"),
      ...argv,
    ]);
    const found = await run(["generate", DEMO, ...argv, "--mesh", "ep=2"]);
    t.equal(found.code, 0, found.err);
    t.equal(found.out, wanted.out);
    await server.close();
    const without = await run(["generate", DEMO, ...argv]);
    t.equal(without.out, wanted.out);
    t.match(without.err, /does not answer: using the cached commit/);
  },
);

t.test("plan reads headers remotely", async (t) => {
  const { server, cache, run } = await startHub(t);
  for (const name of [SHARDED, DEMO]) {
    const folder = name === DEMO ? "demo-lm" : "qwen2moe-8e";
    const argv = ["--mesh", "ep=2", "--json"];
    const wanted = await run(["plan", checkpointFolder(folder), ...argv]);
    const found = await run(["plan", name, ...argv]);
    t.equal(found.code, 0, found.err);
    t.equal(found.out, wanted.out, name);
  }
  const total = Object.values(MODELS[DEMO]!)
    .reduce((sum, { length }) => sum + length, 0);
  t.ok(server.sent < total / 2, `${server.sent} of ${total} bytes`);
  const folder = join(cache, "models--someone--qwen2moe/snapshots", COMMIT);
  t.notOk(existsSync(join(folder, "model-00001-of-00004.safetensors")));
  const offline = await run(["plan", SHARDED], { offline: true });
  t.equal(offline.code, 0, "a configuration suffices");
});

t.test("a GGUF file of a model is planned by its header", async (t) => {
  const file = join(temporaryFolder(t), "demo.gguf");
  await quantizeCheckpoint(checkpointFolder("demo-lm"), nodeFiles(), {
    to: "q8_0",
    out: file,
    rules: [{ pattern: "*", type: "F32" }],
  });
  const bytes = new Uint8Array(readFileSync(file));
  const { server, run } = await startHub(t, {}, {
    "a/gguf": { "demo.gguf": bytes },
  });
  const argv = ["--mesh", "ep=2", "--json"];
  const found = await run(["plan", "a/gguf/demo.gguf", ...argv]);
  t.equal(found.code, 0, found.err);
  t.equal(found.out, (await run(["plan", file, ...argv])).out);
  t.ok(
    server.sent < bytes.length / 2,
    `${server.sent} of ${bytes.length} bytes`,
  );
});

t.test("interrupted transfers resume, in one command and the next", async (t) => {
  const cut = [20_000, 3_000_000];
  const { server, cache, run } = await startHub(t, { cut });
  const { code, err } = await run(["pull", DEMO]);
  t.equal(code, 0, err);
  t.ok(
    server.requests.some((one) =>
      one.endsWith(`-${WEIGHT_BYTES - 1}`) && /bytes=[1-9]/.test(one)
    ),
    "the rest is requested",
  );
  t.equal(cut.length, 0);
  // Each attempt to this server ends without data.
  const failing = await startHub(t, { cut: new Array<number>(60).fill(0) });
  const failed = await failing.run(["pull", DEMO]);
  t.equal(failed.code, 3);
  t.match(
    failed.err,
    /Cannot fetch '.*' of 'someone\/demo-lm': the transfer is interrupted \(.*\)\. Start again: it resumes where it ended/,
  );
  const blobs = join(failing.cache, "models--someone--demo-lm/blobs");
  const [part] = readdirSync(blobs).filter((name) =>
    name.endsWith(".incomplete")
  );
  t.ok(part, "received data is kept");
  const good = commandsOf(server, failing.cache);
  // Half of a file, as an interrupted process leaves it.
  const name = "model.safetensors";
  const weights = MODELS[DEMO]![name]!;
  const target = readlinkSync(
    join(cache, "models--someone--demo-lm/snapshots", COMMIT, name),
  ).split("/").at(-1)!;
  const half = weights.length >> 1;
  writeFileSync(
    join(blobs, `${target}.incomplete`),
    weights.subarray(0, half),
  );
  server.requests.length = 0;
  const resumed = await good.run(["pull", DEMO]);
  t.equal(resumed.code, 0, resumed.err);
  t.ok(
    server.requests.some((one) => one.startsWith(`STORE bytes=${half}-`)),
    "the second half is requested",
  );
  t.ok(readFileSync(join(resumed.out.trim(), name)).equals(weights));
});

t.test("a model that the disk has no space for is not fetched", async (t) => {
  const { server, cache, run } = await startHub(t, { listed: 2 ** 50 });
  const { code, err } = await run(["pull", DEMO]);
  t.equal(code, 3);
  t.match(
    err,
    new RegExp(
      `Cannot fetch '${DEMO}': it needs 1024\\.0 TiB, and the disk of '${cache}' has .* left\\. Free some space, or name a folder`,
    ),
  );
  t.notOk(server.requests.some((one) => one.startsWith("STORE")));
});

t.test("two processes fetch a file once", async (t) => {
  const { server, run } = await startHub(t);
  const pulls = [run(["pull", DEMO]), run(["pull", DEMO])];
  const [first, second] = await Promise.all(pulls);
  t.equal(first!.code, 0, first!.err);
  t.equal(second!.code, 0, second!.err);
  t.equal(second!.out, first!.out);
  const transfers = server.requests.filter((one) => one === "STORE all");
  t.equal(transfers.length, 2, "tokenizer.json and model.safetensors");
});

t.test("contents with a wrong hash are rejected", async (t) => {
  const { cache, run } = await startHub(t, { damaged: true });
  const { code, err } = await run(["pull", DEMO]);
  t.equal(code, 1);
  t.match(
    err,
    /Cannot fetch '.*' of 'someone\/demo-lm': its hash is not the one that the hub lists\. Start again\n$/,
  );
  const folder = join(cache, "models--someone--demo-lm/snapshots", COMMIT);
  t.notOk(existsSync(join(folder, "model.safetensors")));
});

t.test("a partial file with wrong bytes is fetched from the start", async (t) => {
  const { cache, run } = await startHub(t);
  const weights = MODELS[DEMO]!["model.safetensors"]!;
  const blobs = join(cache, "models--someone--demo-lm/blobs");
  mkdirSync(blobs, { recursive: true });
  const etag = createHash("sha256").update(weights).digest("hex");
  writeFileSync(join(blobs, `${etag}.incomplete`), new Uint8Array(1000));
  const { code, out, err } = await run(["pull", DEMO]);
  t.equal(code, 0, err);
  t.ok(readFileSync(join(out.trim(), "model.safetensors")).equals(weights));
});

t.test("missing models and files are named", async (t) => {
  const { server, cache, run } = await startHub(t, { token: "hf_secret" });
  const says = async (
    argv: readonly string[],
    pattern: RegExp,
    settings: Partial<HubSettings> = {},
    code = 1,
  ) => {
    const found = await run(argv, settings);
    t.equal(found.code, code, found.err);
    t.match(found.err, pattern);
    t.equal(found.err.trim().split("\n").length, 1, found.err);
  };
  const generate = (name: string) => ["generate", name, "-p", "a"];
  const token = { token: "hf_secret" };
  await says(
    generate(DEMO),
    /^Cannot read 'someone\/demo-lm': there is no such file or folder, and http:.* has no such public model\. Check the name, or set HF_TOKEN/,
  );
  await says(generate(DEMO), /renew HF_TOKEN/, { token: "hf_old" });
  await says(
    generate("someone/else"),
    /no such model with revision 'main'/,
    token,
  );
  await says(generate(`${DEMO}@v2`), /no such model with revision 'v2'/, token);
  await says(
    generate(DEMO),
    /^Cannot read 'someone\/demo-lm': .* the cache has no model of that name with revision 'main'\. Unset HF_HUB_OFFLINE/,
    { offline: true },
  );
  await says(
    ["plan", "package.json", "--revision", "main"],
    /^Cannot use --revision with 'package.json'/,
    {},
    2,
  );
  await says(["pull", "nothing"], /it is no name on the hub/, {}, 2);
  for (const endpoint of ["mirror.example", "ftp://mirror", "http://a b"]) {
    await says(
      ["pull", DEMO],
      new RegExp(`^Cannot use HF_ENDPOINT '${endpoint}': it is no HTTP URL`),
      { endpoint },
      2,
    );
  }
  const pulled = await run(["plan", SHARDED, "--revision", "main"], token);
  t.equal(pulled.code, 0, pulled.err);
  t.notOk(
    server.requests.some((one) => one.endsWith("with the token")),
    "the token is sent only to the hub",
  );
  await says(
    generate(SHARDED),
    /^Cannot use 'someone\/qwen2moe': the cache lacks 'model-0000\d-of-00004.safetensors' of revision 'main'/,
    { offline: true },
  );
  const gated = await startHub(t, { gated: true });
  const refused = await gated.run(generate(DEMO));
  t.match(refused.err, /its access is restricted\. Request access at http/);
  const busy = await startHub(t, { busy: 2 });
  t.equal((await busy.run(["pull", DEMO])).code, 0, "503 is retried");
  const down = await startHub(t, { busy: 100 });
  const failed = await down.run(["pull", DEMO]);
  t.equal(failed.code, 3);
  t.match(failed.err, /does not answer/);
  await server.close();
  await says(
    generate("someone/new"),
    /does not answer \(ECONNREFUSED\)/,
    {},
    3,
  );
  t.notOk(existsSync(join(cache, "models--someone--new")));
});

t.test("a folder of the same name is preferred", async (t) => {
  const { server, run } = await startHub(t);
  const folder = temporaryFolder(t);
  const before = process.cwd();
  process.chdir(folder);
  t.teardown(() => process.chdir(before));
  mkdirSync(DEMO, { recursive: true });
  const { code, err } = await run(["generate", DEMO, "-p", "a"]);
  t.equal(code, 1);
  t.match(err, /^Cannot read 'someone\/demo-lm': it has no config.json/);
  t.strictSame(server.requests, []);
});

t.test("a model without safetensors is rejected with its formats", async (t) => {
  const { run } = await startHub(t, {}, {
    "a/gguf": { "m-q4.gguf": new Uint8Array(10) },
    "a/bin": { "config.json": Buffer.from("{}"), "x.bin": new Uint8Array(9) },
    "a/none": { "x.bin": new Uint8Array(9) },
  });
  const { err } = await run(["pull", "a/gguf"]);
  t.match(err, /Name one of them, such as a\/gguf\/m-q4.gguf/);
  t.match((await run(["pull", "a/bin"])).err, /it has no safetensors file/);
  t.match((await run(["pull", "a/none"])).err, /it has no config.json/);
  t.match(
    (await run(["pull", "a/gguf/other.gguf"])).err,
    /it has no file 'other.gguf'/,
  );
  const pulled = await run(["pull", "a/gguf/m-q4.gguf"]);
  t.match(pulled.out, /snapshots\/[0-9a-f]{40}\/m-q4.gguf\n$/, pulled.err);
});
