// The npm package, installed in an empty project: its commands, types and imports.
// needs: cpu, browser
import { spawn, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath, pathToFileURL } from "node:url";
import t from "tap";
import {
  openBrowser,
  openPage,
  skipWithoutBrowser,
} from "./helpers/browser.ts";
import { switchyard as runHere } from "./helpers/cli.ts";
import { clonePath } from "./helpers/compiled.ts";
import {
  commandsOf,
  programsOf,
  readPage,
  shortened,
  writeShownFiles,
} from "./helpers/guide.ts";
import { DENO, type Runtime, RUNTIMES } from "./helpers/nodes.ts";
import { ableInTurn, inTurn, isInTurn, repeatWith } from "./helpers/seed.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PROJECT = mkdtempSync(join(tmpdir(), "switchyard-pack-"));
const INSTALLED = join(PROJECT, "node_modules/switchyard-moe");
/** TypeScript 7, several times faster than 6, which the editor uses, and one test in every third run. */
const TSC = join(ROOT, "node_modules/typescript-7/bin/tsc");
t.teardown(() => rmSync(PROJECT, { recursive: true, force: true }));

/** Environment without settings of an outer npm, which would send a nested one to the wrong project. */
const ENV = Object.fromEntries(
  Object.entries(process.env).filter(([name]) =>
    !/^npm_(config_(local_prefix|prefix)|package|lifecycle)/.test(name)
  ),
);

/** Node.js of this process. */
const NODE: Runtime = {
  name: "Node.js",
  program: process.execPath,
  argv: [],
  skip: false,
};

interface Result {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function call(command: string, argv: string[], cwd = PROJECT): Result {
  return spawnSync(command, argv, {
    cwd,
    env: ENV,
    encoding: "utf8",
    maxBuffer: 1 << 28,
    shell: process.platform === "win32",
  });
}

function switchyard(...argv: string[]): Result {
  return call(process.execPath, [
    join(INSTALLED, "bin/switchyard.mjs"),
    ...argv,
  ]);
}

/**
 * Installs the tarball with npm, in every third run. In others, and without a registry, unpacks it and links this
 * clone's dependencies. Returns why npm did not install it, or false.
 */
function install(tarball: string): string | false {
  if (!isInTurn(0, 3)) return link(tarball, "not in this rotation");
  const { status, stderr } = call("npm", [
    ...["install", "--prefer-offline", "--no-audit", "--no-fund"],
    ...["--fetch-retries=0", tarball],
  ]);
  if (status === 0) return false;
  if (!/ENOTCACHED|EAI_AGAIN|ENOTFOUND|ECONN|ETIMEDOUT|E40[134]/.test(stderr)) {
    throw new Error(`Cannot install the package: ${stderr}`);
  }
  return link(tarball, "no registry");
}

/** Unpacks the tarball and links this clone's dependencies. Returns the reason. */
function link(tarball: string, reason: string): string {
  const modules = join(PROJECT, "node_modules");
  rmSync(modules, { recursive: true, force: true });
  mkdirSync(INSTALLED, { recursive: true });
  call("tar", ["-xzf", tarball, "-C", INSTALLED, "--strip-components=1"]);
  const { dependencies, optionalDependencies } = JSON.parse(
    readFileSync(join(INSTALLED, "package.json"), "utf8"),
  ) as Record<string, { [name: string]: string }>;
  for (
    const name of Object.keys({ ...dependencies, ...optionalDependencies })
  ) {
    mkdirSync(dirname(join(modules, name)), { recursive: true });
    symlinkSync(join(ROOT, "node_modules", name), join(modules, name));
  }
  return `${reason}; unpacked and linked`;
}

const PACKED = call("npm", ["pack", "--pack-destination", PROJECT], ROOT);
const tarball = readdirSync(PROJECT).find((name) => name.endsWith(".tgz"));
if (PACKED.status !== 0 || tarball === undefined) {
  t.fail("npm pack makes a tarball", { ...PACKED });
  process.exit();
}
writeFileSync(
  join(PROJECT, "package.json"),
  '{ "name": "elsewhere", "private": true, "type": "module" }',
);
const skip = install(join(PROJECT, tarball));
cpSync(join(ROOT, "examples/layer.ts"), join(PROJECT, "layer.ts"));

t.test("npm installs the tarball", { skip }, (t) => {
  t.ok(existsSync(join(PROJECT, "node_modules/.bin/switchyard")));
  t.end();
});

t.test("the package has the checkpoint and the sources, and no tests", (t) => {
  for (
    const file of [
      "examples/demo-lm/model.safetensors",
      "examples/layer.ts",
      "models/families/mixtral.ts",
      "dist/models/mod.d.ts",
      "compiler/mod.ts",
      "dist/compiler/mod.js",
      "dist/compiler/mod.d.ts",
      "dist/browser/mod.d.ts",
      "dist/browser/mod.js",
      "LICENSE",
      "README.md",
      "docs/library.md",
      "docs/reference/README.md",
    ]
  ) t.ok(existsSync(join(INSTALLED, file)), file);
  t.notOk(existsSync(join(INSTALLED, "test")));
  const files = readdirSync(join(INSTALLED, "dist"), { recursive: true })
    .map(String);
  const declared = files.filter((file) => file.endsWith(".d.ts"));
  t.comment(`${declared.length} declarations`);
  t.strictSame(
    declared.filter((file) =>
      /^(bench|cli\/commands|scripts|test)\b/.test(file)
    ),
    [],
    "declarations of exports only",
  );
  t.end();
});

t.test("links of its pages lead to files of the package", (t) => {
  const pages = ["README.md", "SECURITY.md"].concat(
    ["docs", "spec"].flatMap((folder) =>
      readdirSync(join(INSTALLED, folder))
        .filter((name) => name.endsWith(".md"))
        .map((name) => `${folder}/${name}`)
    ),
  );
  t.ok(pages.length > 20, `${pages.length} pages`);
  const broken = pages.flatMap((page) => {
    const text = readFileSync(join(INSTALLED, page), "utf8");
    return [...text.matchAll(/\]\(([^)#\s]+)(#[^)]*)?\)/g)]
      .map(([, link]) => link!)
      .filter((link) => !/^[a-z]+:/.test(link))
      .filter((link) => !existsSync(join(INSTALLED, dirname(page), link)))
      .map((link) => `${page}: ${link}`);
  });
  t.strictSame(broken, []);
  t.end();
});

t.test("switchyard --help and devices", (t) => {
  t.match(switchyard("--help"), { status: 0, stdout: /devices/ });
  const { status, stdout, stderr } = switchyard("devices", "--json");
  t.equal(status, 0, stderr);
  t.ok(JSON.parse(stdout));
  const serve = switchyard("serve", "nothing");
  t.match(serve, { status: 1, stderr: /Cannot read 'nothing'/ });
  t.end();
});

t.test("switchyard check", (t) => {
  const good = switchyard("check", "layer.ts");
  t.equal(good.status, 0, good.stdout + good.stderr);
  const text = readFileSync(join(PROJECT, "layer.ts"), "utf8");
  writeFileSync(
    join(PROJECT, "wrong.ts"),
    text.replace('"router", "expert embed"', '"router", "expert ffn"'),
  );
  const bad = switchyard("check", "wrong.ts");
  t.equal(bad.status, 1);
  t.match(bad.stdout + bad.stderr, /wrong\.ts:\d+:\d+/);
  t.end();
});

t.test("switchyard plan", (t) => {
  const { status, stdout, stderr } = switchyard(
    ...["plan", "layer.ts", "--target", "8xh100", "--mesh", "ep=4", "--json"],
  );
  t.equal(status, 0, stderr);
  const { mesh, target } = JSON.parse(stdout);
  t.strictSame([mesh, target], [{ ep: 4 }, "8 H100 with NVLink"]);
  t.end();
});

t.test("the bundled code compiles the plans of the modules", async (t) => {
  const plan = ["plan", join(PROJECT, "layer.ts"), "--mesh", "ep=4", "--out"];
  const [bundled, modules] = [join(PROJECT, "a.json"), join(PROJECT, "b.json")];
  t.equal(switchyard(...plan, bundled).status, 0);
  t.equal((await runHere([...plan, modules])).code, 0);
  t.ok(readFileSync(bundled).equals(readFileSync(modules)), "the same bytes");
});

t.test("switchyard view", (t) => {
  const { status, stderr } = switchyard("view", "layer.ts", "--mesh", "ep=4");
  t.equal(status, 0, stderr);
  t.match(readFileSync(join(PROJECT, "plan.html"), "utf8"), /layer on ep=4/);
  t.end();
});

t.test("import from JavaScript", (t) => {
  writeFileSync(
    join(PROJECT, "program.js"),
    `import { compile, dot, map, model } from "switchyard-moe";
const layer = model({ token: 4, embed: 8, out: 2 }, (m) => {
  const x = m.input("x", "token embed");
  const y = map((v) => v * 2 + Math.exp(-v), x);
  return { y: dot(y, m.param("w", "out embed"), "embed") };
});
const plan = await compile(layer, { mesh: { ep: 1 } });
console.log(plan.ranks, Object.keys(plan.kernels).length > 0);
`,
  );
  const { status, stdout, stderr } = call(process.execPath, ["program.js"]);
  t.equal(status, 0, stderr);
  t.equal(stdout.trim(), "1 true");
  t.end();
});

t.test("types hold for a TypeScript user", (t) => {
  const options = { strict: true, target: "es2022", types: [], noEmit: true };
  const old = join(ROOT, "node_modules/typescript/bin/tsc");
  const tsc = isInTurn(1, 3) ? old : TSC;
  for (
    const modules of [
      { module: "nodenext" },
      { module: "esnext", moduleResolution: "bundler" },
    ]
  ) {
    writeFileSync(
      join(PROJECT, "tsconfig.json"),
      JSON.stringify({
        compilerOptions: { ...options, ...modules },
        files: ["layer.ts"],
      }),
    );
    const { status, stdout } = call(process.execPath, [tsc, "-p", "."]);
    t.equal(status, 0, stdout);
  }
  t.end();
});

/** Each run follows one guide: `docs/own_model.md`, also in a browser, or `docs/library.md`. */
const [skipOwnModel = false, skipLibrary = false] = [0, 1].map((i) =>
  isInTurn(i, 2) ? false : `not in this rotation. ${repeatWith()}`
);

/** Folder of `docs/own_model.md`. */
const GUIDE = join(PROJECT, "guide");

/** Commands after those of the guide: another mesh, and the plan and text of `docs/library.md`. */
const AFTER_GUIDE: readonly (readonly string[])[] = [
  [
    ...["run", "layer.ts", "--random", "--mesh", "ep=2"],
    ...["--outputs", "again", "--adapter", "cpu"],
  ],
  /`switchyard (plan taught .*?)`/.exec(readPage("library.md"))![1]!.split(" "),
  [
    ...["generate", "taught", "--family", "./twins.ts", "--adapter", "cpu"],
    ...["-p", "Once upon a time", "--json"],
  ],
];

/** Output of the last of these commands. */
let wantedText = "";

/** Runs commands of the installed program in the guide's folder, in one process. */
function runAll(commands: readonly (readonly string[])[]) {
  const file = join(GUIDE, "commands.json");
  writeFileSync(file, JSON.stringify(commands));
  const { stderr } = call(process.execPath, [
    clonePath("test/helpers/commands.mjs"),
    file,
    join(INSTALLED, "dist/cli/main.js"),
  ], GUIDE);
  const ended = JSON.parse(
    readFileSync(`${file}.ended`, "utf8"),
  ) as { readonly code: number; readonly out: string; readonly err: string }[];
  if (ended.length === commands.length) return ended;
  throw new Error(`'${commands[ended.length]!.join(" ")}' ends: ${stderr}`);
}

t.test("docs/own_model.md, from file to text", { skip: skipOwnModel }, (t) => {
  const folder = GUIDE;
  mkdirSync(folder);
  symlinkSync(join(PROJECT, "node_modules"), join(folder, "node_modules"));
  const page = readPage("own_model.md");
  writeShownFiles(page, folder);
  const [, type] = /^npm pkg set (type=.*)$/m.exec(page)!;
  writeFileSync(join(folder, "package.json"), "{}");
  call("npm", ["pkg", "set", type!], folder);
  const [, settings] = /```json\n(.*?)```/s.exec(page)!;
  const { compilerOptions } = JSON.parse(settings!);
  const [plugin] = compilerOptions.plugins;
  const { exports } = JSON.parse(
    readFileSync(join(INSTALLED, "package.json"), "utf8"),
  );
  t.ok(`.${plugin.name.slice("switchyard-moe".length)}` in exports);
  const lines = commandsOf(page);
  for (const line of lines.filter(([name]) => name === "cp")) {
    const to = join(folder, line.at(-1)!);
    for (const from of line.slice(1, -1)) {
      cpSync(join(folder, from), join(to, basename(from)));
    }
  }
  const commands = lines.filter(([name]) => name !== "cp").map((line) => {
    const [, , name, ...argv] = shortened(line);
    const computes = ["run", "train", "generate"].includes(name!);
    return [name!, ...argv, ...computes ? ["--adapter", "cpu"] : []];
  });
  const ended = runAll([...commands, ...AFTER_GUIDE]);
  for (const [i, argv] of [...commands, ...AFTER_GUIDE].entries()) {
    const { code, out, err } = ended[i]!;
    t.equal(code, 0, argv.join(" ") + err);
    if (argv[0] === "generate") t.match(out, /\S/, argv.join(" "));
  }
  for (
    const written of [
      "y.safetensors",
      "trained/metrics.jsonl",
      "trained/loss.svg",
      "trained/experts.svg",
      "taught/model.safetensors.index.json",
    ]
  ) t.ok(existsSync(join(folder, written)), written);
  const config = JSON.parse(
    readFileSync(join(folder, "taught/config.json"), "utf8"),
  );
  t.match(config, {
    architectures: ["TwinsForCausalLM"],
    num_experts: 8,
    vocab_size: 2048,
  });
  wantedText = ended.at(-1)!.out;
  const bytes = readFileSync(join(folder, "y.safetensors"));
  const other = readFileSync(join(folder, "again"));
  t.ok(other.equals(bytes), "the same bytes on another mesh");
  const typeRoots = [join(ROOT, "node_modules/@types")];
  writeFileSync(
    join(folder, "tsconfig.json"),
    JSON.stringify({
      compilerOptions: { ...compilerOptions, typeRoots, target: "es2022" },
      files: ["layer.ts", "twins.ts", "olmoe.ts", "next_byte.ts"],
    }),
  );
  const typed = call(process.execPath, [TSC, "-p", "."], folder);
  t.equal(typed.status, 0, typed.stdout);
  t.end();
});

t.test("docs/library.md in a browser: text of a user's model", {
  skip: skipOwnModel || skipWithoutBrowser,
}, async (t) => {
  const folder = GUIDE;
  const page = readPage("library.md");
  const program = programsOf(page).at(-1)!.replace("demo-lm/", "taught/");
  const { serve } = await import(
    pathToFileURL(join(INSTALLED, "examples/browser/serve.mjs")).href
  ) as { serve(port: number): Promise<Server> };
  const server = await serve(0);
  t.teardown(() => server.close());
  const { port } = server.address() as AddressInfo;
  const browser = await openBrowser();
  t.teardown(() => browser.close());
  const { page: tab, complaints } = await openPage(browser, "about:blank");
  const headers = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
  };
  await tab.route(/\/(plan\.json|taught\/.*)$/, async (route) => {
    const { pathname } = new URL(route.request().url());
    const path = join(folder, pathname);
    if (!existsSync(path)) return await route.fulfill({ status: 404 });
    await route.fulfill({ path, headers });
  });
  const imports = { "switchyard-moe/browser": "/dist/browser/mod.js" };
  await tab.route("**/guide.html", (route) =>
    route.fulfill({
      contentType: "text/html",
      headers,
      body: `<!doctype html><head><link rel="icon" href="data:,">
<script type="importmap">${JSON.stringify({ imports })}</script>
<script type="module">${program}document.title = "done";</script></head>`,
    }));
  await tab.goto(`http://localhost:${port}/guide.html`);
  await tab.waitForFunction("document.title === 'done'");
  const [{ text }] = JSON.parse(wantedText).sequences;
  const shown = await tab.evaluate<string>("document.body.textContent");
  t.ok(shown.length > 0 && text.length > 0, "text is shown");
  const length = Math.min(shown.length, text.length);
  t.equal(shown.slice(0, length), text.slice(0, length), "the same text");
  // Browsers report missing optional files of a checkpoint.
  t.strictSame(complaints.filter((one) => !/404/.test(one)), []);
});

// Under Node.js and Deno, and type-checked without the DOM library.
t.test("programs of docs/library.md", { skip: skipLibrary }, async (t) => {
  const page = readPage("library.md");
  const [run, generate, train, browser] = programsOf(page);
  const folder = join(PROJECT, "library");
  mkdirSync(folder);
  symlinkSync(
    join(PROJECT, "node_modules"),
    join(folder, "node_modules"),
    "junction",
  );
  writeFileSync(join(folder, "package.json"), '{ "type": "module" }');
  writeShownFiles(readPage("own_model.md"), folder);
  cpSync(
    join(INSTALLED, "examples/train/next_byte.ts"),
    join(folder, "next_byte.ts"),
  );
  const files = Object.entries({ run, generate, train }).map(([name, text]) => {
    writeFileSync(join(folder, `${name}.mjs`), text!);
    return `${name}.mjs`;
  });
  const outputs = new Map<string, string>();
  for (const { name, program, argv, skip } of ableInTurn([NODE, DENO])) {
    await t.test(name, { skip }, (t) => {
      rmSync(join(folder, "trained"), { recursive: true, force: true });
      for (const file of files) {
        const ended = call(program, [...argv, file], folder);
        t.equal(ended.status, 0, `${file}: ${ended.stderr}`);
        t.equal(ended.stdout, outputs.get(file) ?? ended.stdout, file);
        outputs.set(file, ended.stdout);
      }
      t.ok(existsSync(join(folder, "trained")));
      t.end();
    });
  }
  t.match(outputs.get("run.mjs"), /^\[ 24, 32 \] \d/);
  t.match(outputs.get("generate.mjs"), /\w+/);
  t.match(outputs.get("train.mjs"), /^1 \d.*\n2 \d/);
  writeFileSync(join(folder, "browser.mjs"), browser!);
  const options = {
    strict: true,
    module: "nodenext",
    target: "es2022",
    allowJs: true,
    checkJs: true,
    noEmit: true,
  };
  const compile = (lib: string[], included: string[]) => {
    writeFileSync(
      join(folder, "tsconfig.json"),
      JSON.stringify({
        compilerOptions: {
          ...options,
          lib,
          types: [],
          typeRoots: [join(ROOT, "node_modules/@types")],
        },
        files: included,
      }),
    );
    const { status, stdout } = call(process.execPath, [TSC, "-p", "."], folder);
    t.equal(status, 0, stdout);
  };
  compile(["es2024"], files);
  compile(["es2024", "dom"], ["browser.mjs"]);
});

/** Runtimes for the server, which runs on one of them, by `SEED`. test/nodes.test.ts runs TypeScript on all of them. */
const servers = [NODE, ...RUNTIMES.filter(({ skip }) => !skip)];
const [{ name: serverName, program, argv } = NODE] = inTurn(
  servers,
  servers.length,
);

t.test(
  `${serverName}: TypeScript's server loads the plugin, which shows tracing errors`,
  async (t) => {
    const folder = join(PROJECT, "edited");
    mkdirSync(folder, { recursive: true });
    const plugins = [{ name: "switchyard-moe/editor", seconds: 3600 }];
    // Without `lib`, the server would also check DOM types.
    const lib = ["es2022"];
    const options = {
      strict: true,
      module: "nodenext",
      lib,
      types: [],
      plugins,
    };
    writeFileSync(
      join(folder, "tsconfig.json"),
      JSON.stringify({ compilerOptions: options, files: ["layer.ts"] }),
    );
    const file = join(folder, "layer.ts");
    const text = readFileSync(join(PROJECT, "layer.ts"), "utf8");
    writeFileSync(file, text.replace("topK: 2", "topK: 9"));
    const server = spawn(program, [
      ...argv,
      join(ROOT, "node_modules/typescript/lib/tsserver.js"),
      ...[
        "--pluginProbeLocations",
        PROJECT,
        "--disableAutomaticTypingAcquisition",
      ],
    ], { stdio: ["pipe", "pipe", "ignore"] });
    t.teardown(() => server.kill());
    const ask = (command: string, fields: object): void => {
      const request = { seq: 0, type: "request", command, arguments: fields };
      server.stdin.write(`${JSON.stringify(request)}\n`);
    };
    ask("open", { file });
    ask("geterr", { files: [file], delay: 0 });
    let received = "";
    for await (const part of server.stdout) {
      received += part;
      // The server reports news, and an editor then asks again.
      if (/projectsUpdatedInBackground/.test(String(part))) {
        ask("geterr", { files: [file], delay: 0 });
      }
      if (/Cannot choose 9 of axis/.test(received)) break;
    }
    t.match(
      received,
      /Cannot choose 9 of axis 'expert': expected a whole number from 1 to 8/,
    );
  },
);

t.test("without optional packages it computes on a CPU and states how to add a GPU", (t) => {
  const modules = join(PROJECT, "node_modules");
  for (const name of ["webgpu", "koffi"]) {
    renameSync(join(modules, name), join(PROJECT, name));
  }
  const { status, stdout, stderr } = switchyard("devices");
  t.strictSame([status, stderr], [0, ""]);
  t.match(
    stdout,
    /^adapters: none that can be used: the package 'webgpu' is not installed\. Run 'npm install webgpu'\n[^]*auto uses cpu/,
  );
  const refused = switchyard(
    ...["generate", join(INSTALLED, "examples/demo-lm")],
    ...["--prompt", "a", "--adapter", "0"],
  );
  t.strictSame([refused.status, refused.stderr], [
    3,
    "Cannot use adapter 0: this machine has none that can be used: the package 'webgpu' is not installed. Run 'npm install webgpu'\n",
  ]);
  for (const name of ["webgpu", "koffi"]) {
    renameSync(join(PROJECT, name), join(modules, name));
  }
  t.end();
});

t.test("switchyard generate from the packed checkpoint", (t) => {
  const { status, stdout, stderr } = switchyard(
    ...["generate", join(INSTALLED, "examples/demo-lm"), "--json"],
    ...["--prompt", "Once upon a time", "--max-new-tokens", "2"],
  );
  if (status === 3) {
    t.pass("two tokens", { skip: `the machine cannot: ${stderr.trim()}` });
    return t.end();
  }
  t.equal(status, 0, stderr);
  t.equal(JSON.parse(stdout).sequences[0].tokens.length, 2);
  t.end();
});
