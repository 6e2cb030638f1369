// Caches of devices: C functions and WebAssembly modules are compiled once; least recently used files are removed.
// needs: cpu
import { spawnSync } from "node:child_process";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import t from "tap";
import { availableCores } from "../runtime/available_cores.ts";
import { findCompiler } from "../runtime/native/mod.ts";
import { type CFunction, ObjectCache } from "../runtime/native/objects.ts";
import { groupsOfText, printGroup } from "../runtime/native/shared_text.ts";
import { importKoffi } from "../runtime/koffi.ts";
import { ModuleCache } from "../runtime/cpu/module_cache.ts";
import { readUsed, removeOldest } from "../runtime/cache/used_files.ts";
import { skipUnasked } from "./helpers/needs.ts";

const compiler = await findCompiler();
const skip = skipUnasked("cpu") ||
  (compiler ? false : "there is no C compiler");

/** A function that stores a number. */
function stores(value: number): CFunction {
  return {
    prelude: "typedef unsigned u;\n#define KERNEL void",
    text: `(u *x) { *x = ${value}; }`,
    scratch: value,
  };
}

t.test("functions are printed and compiled once", { skip }, async (t) => {
  const folder = t.testdir();
  const objects = () =>
    readdirSync(folder).filter((name) => name.endsWith(".so"));
  let printed = 0;
  const find = (of: string | undefined, ...values: readonly number[]) =>
    new ObjectCache(compiler!, folder).functions(() => {
      printed++;
      return values.map(stores);
    }, { of, progress: () => {} });
  const first = await find("a", 1, 2, 1);
  t.equal(first[0]!.name, first[2]!.name);
  t.not(first[0]!.name, first[1]!.name);
  t.strictSame(first.map(({ scratch }) => scratch), [1, 2, 1]);
  const before = objects();
  t.strictSame(await find("a"), first, "without being printed");
  t.equal(printed, 1);
  t.strictSame(await find("b", 2, 1), [first[1], first[0]]);
  t.strictSame(await find(undefined, 2), [first[1]]);
  t.equal(printed, 3);
  t.strictSame(objects(), before, "none was compiled again");
  // A missing object is compiled again despite its note.
  rmSync(first[1]!.path);
  const [again] = await find("b", 2, 1);
  t.ok(existsSync(again!.path));
  t.equal(printed, 4);
  await t.rejects(
    new ObjectCache(compiler!, folder).functions(
      () => [{ ...stores(3), text: "(u *x) { nothing }" }],
      { of: undefined, progress: () => {} },
    ),
    /^Cannot compile a kernel: .* error: .*\. Name another compiler/,
  );
});

/** A long function that stores a number and counts to another. */
function counts(value: number, bound = 3): CFunction {
  const loop = `for (u i = 0u; i < ${bound}u; i += 1u) x[1] += x[1] / 4u + 1u;`;
  return {
    prelude: "typedef unsigned u;\n#define KERNEL void",
    text: `(u *x) {\n  x[0u] = ${value}u;\n  ${loop}\n${
      "  // A long text.\n".repeat(1000)
    }}`,
    scratch: 0,
  };
}

t.test("long functions share a text without constants", { skip }, async (t) => {
  const functions = [
    counts(5),
    counts(4_000_000_000),
    counts(6, 7),
    counts(7),
    stores(8),
    stores(9),
  ];
  const texts = new Map(
    functions.map(({ text }, i) => [`f_${i}`, text]),
  );
  const groups = groupsOfText(texts);
  t.strictSame(
    groups,
    [["f_0", "f_1", "f_3"], ["f_2"], ["f_4"], ["f_5"]],
    "bounds of loops and short functions are compiled with their constants",
  );
  const printed = printGroup(groups[0]!, (name) => texts.get(name)!);
  t.equal(printed.split("for (u i").length - 1, 1, "printed once");
  const found = await new ObjectCache(compiler!, t.testdir())
    .functions(() => functions, { of: undefined, progress: () => {} });
  const koffi = await importKoffi();
  const results = found.slice(0, 4).map(({ path, name }) => {
    const words = Uint32Array.of(0, 1);
    koffi.load(path).func(`void ${name}(void *x)`)(words);
    return [...words];
  });
  t.strictSame(results, [[5, 4], [4_000_000_000, 4], [6, 14], [7, 4]]);
  t.equal(
    new Set(found.slice(0, 2).map(({ path }) => path)).size,
    1,
    "compiled together",
  );
});

t.test("the longest function is compiled first", { skip }, async (t) => {
  const folder = t.testdir();
  const wrapper = path.join(folder, "cc");
  // Shorter texts wait for the longest; without it, the compiler fails after a minute.
  writeFileSync(
    wrapper,
    `#!/bin/sh
begun='${folder}/begun'
if [ "$(wc -c)" -gt 90000 ]; then : >"$begun"; fi
left=600
until [ -e "$begun" ]; do
  [ $((left -= 1)) -gt 0 ] || exit 1
  sleep 0.1
done
for last; do to=$next; next=$last; done
: >"$to"
`,
    { mode: 0o755 },
  );
  const short = new Array<number>(availableCores()).fill(10);
  const lengths = [...short, 90_000, 20];
  const objects = new ObjectCache(
    { ...compiler!, command: wrapper },
    path.join(folder, "objects"),
  );
  const found = await objects.functions(
    () =>
      lengths.map((length, i) => ({
        prelude: `// ${i}`,
        text: "x".repeat(length),
        scratch: i,
      })),
    { of: undefined, progress: () => {} },
  );
  t.strictSame(found.map(({ scratch }) => scratch), [...lengths.keys()]);
});

t.test("a library is compiled once", { skip }, async (t) => {
  const folder = t.testdir();
  const text = "int answer(void) { return 42; }";
  const file = await new ObjectCache(compiler!, folder).library(text);
  // A missing compiler cannot compile, so the result is cached.
  const absent = { ...compiler!, command: path.join(folder, "absent") };
  t.equal(await new ObjectCache(absent, folder).library(text), file);
  await t.rejects(
    new ObjectCache(absent, t.testdir()).library(text),
    /^Cannot compile a kernel/,
  );
});

/** Kinds of damage to a cached file. */
const DAMAGE: { readonly [title: string]: (file: string) => void } = {
  "removed": (file) => rmSync(file),
  "empty": (file) => put(file, Buffer.of()),
  "truncated": (file) =>
    put(file, readFileSync(file).subarray(0, -(lstatSync(file).size >> 1))),
  "a byte differs": (file) => {
    const bytes = readFileSync(file);
    bytes[bytes.length >> 1]! ^= 1;
    put(file, bytes);
  },
  "replaced by a folder": (file) => {
    rmSync(file);
    mkdirSync(path.join(file, "inside"), { recursive: true });
  },
  "replaced by a pipe": (file) => {
    rmSync(file);
    spawnSync("mkfifo", [file]);
  },
  "replaced by a broken link": (file) => {
    rmSync(file);
    symlinkSync(`${"0".repeat(64)}.so`, file);
  },
};

/** Replaces a file, which may be a link, or mapped. */
function put(file: string, bytes: Uint8Array): void {
  rmSync(file);
  writeFileSync(file, bytes);
}

t.test("damaged files are regenerated", { skip }, async (t) => {
  const koffi = await import("koffi");
  const folder = path.join(t.testdir(), "native");
  const stored = async () => {
    const cache = new ObjectCache(compiler!, folder);
    const find = (of?: string) =>
      cache.functions(() => [stores(7)], { of, progress: () => {} });
    // Found by the link, then by the note.
    const [found] = await find();
    t.strictSame(await find("a"), [found]);
    t.equal(cache.unkept, undefined);
    const word = new Uint32Array(1);
    koffi.load(found!.path).func(`void ${found!.name}(void *x)`)(word);
    return word[0];
  };
  await stored();
  if (process.platform !== "win32") {
    t.equal(lstatSync(folder).mode & 0o777, 0o700, "only its owner has access");
  }
  const files = readdirSync(folder).filter((name) => name !== "looked");
  t.equal(files.length, 3, "an object, a link and a note");
  for (const name of files) {
    for (const [title, damage] of Object.entries(DAMAGE)) {
      damage(path.join(folder, name));
      t.equal(await stored(), 7, `${name}: ${title}`);
    }
  }
  const names = readdirSync(folder);
  await stored();
  t.strictSame(readdirSync(folder), names, "nothing is compiled again");
});

t.test("an unusable folder is replaced", { skip }, async (t) => {
  const scratch = t.testdir({ file: "" });
  symlinkSync("nowhere", path.join(scratch, "link"));
  const folders: { readonly [folder: string]: RegExp } = {
    [path.join(scratch, "file")]: /^EEXIST: /,
    [path.join(scratch, "file", "native")]: /^ENOTDIR: /,
    [path.join(scratch, "link")]: /^EEXIST: /,
    // Node's own recursive mkdir hangs here.
    "/proc/x/native": /^ENOENT: /,
  };
  for (const [folder, reason] of Object.entries(folders)) {
    const cache = new ObjectCache(compiler!, folder);
    const find = () =>
      cache.functions(() => [stores(1)], { of: "a", progress: () => {} });
    const [first] = await find();
    t.match(cache.unkept, reason);
    t.ok(existsSync(first!.path));
    t.strictSame(await find(), [first], "it is cached for the process");
  }
});

t.test("a file whose time cannot be changed is read", {
  skip: process.getuid?.()
    ? false
    : "this user may change the time of any file",
}, async (t) => {
  t.ok(await readUsed("/bin/sh"));
});

t.test("the least recently used files are removed", async (t) => {
  const folder = path.join(t.testdir(), "cache");
  mkdirSync(folder);
  const file = (name: string) => path.join(folder, name);
  const hours = (n: number) => new Date(Date.now() - n * 3_600_000);
  for (const [i, name] of ["now", "today", "before", "long"].entries()) {
    writeFileSync(file(name), new Uint8Array(8192));
    utimesSync(file(name), hours(5 * i), hours(5 * i));
  }
  for (const name of ["today", "long"]) {
    symlinkSync(name, file(`to_${name}`));
  }
  await removeOldest(folder, { max: 25_000 });
  t.strictSame(
    readdirSync(folder).sort(),
    ["before", "looked", "now", "to_today", "today"],
  );
  // Removal does not repeat within the hour. Files in use may take four times the limit.
  utimesSync(file("before"), hours(100), hours(100));
  await removeOldest(folder, { max: 2048 });
  t.ok(existsSync(file("before")));
  const again = async (max: number) => {
    utimesSync(file("looked"), hours(2), hours(2));
    await removeOldest(folder, { max });
    return readdirSync(folder).sort();
  };
  t.strictSame(await again(2048), ["looked", "now"]);
  t.strictSame(await again(2047), ["looked"]);
});

t.test("options of CC do not change results", { skip }, async (t) => {
  const koffi = await import("koffi");
  const careless = {
    ...compiler!,
    command: `${compiler!.command} -O1 -ffast-math`,
  };
  const text = "int differs(float x) { return x != x; }";
  const file = await new ObjectCache(careless, t.testdir()).library(text);
  const differs = koffi.load(file).func("int differs(float x)");
  t.equal(differs(NaN), 1, "a NaN differs from itself");
  t.equal(differs(1), 0);
  const fastest = {
    ...compiler!,
    command: `${compiler!.command} -Ofast`,
  };
  const times = koffi.load(
    await new ObjectCache(fastest, t.testdir()).library(
      "float times(float x, float y) { return x * y; }",
    ),
  ).func("float times(float x, float y)");
  t.equal(times(2 ** -149, 1), 2 ** -149, "subnormal numbers are kept");
});

t.test("modules are generated once, and again if a file is damaged", async (t) => {
  const folder = path.join(t.testdir(), "wasm");
  let printed = 0;
  const find = (texts: string) =>
    new ModuleCache(folder).module(texts, () => {
      printed++;
      return { bytes: Uint8Array.of(10, ...Buffer.from(texts)), scratch: [4] };
    });
  const first = await find("a");
  t.strictSame(await find("a"), first);
  t.equal(printed, 1);
  t.notSame(await find("b"), first, "another text gives another module");
  t.equal(printed, 2);
  const [file] = readdirSync(folder).filter((n) => n.endsWith(".kernels"));
  for (const [title, damage] of Object.entries(DAMAGE)) {
    damage(path.join(folder, file!));
    await find("b");
    const before = printed;
    t.strictSame([await find("a"), await find("a")], [first, first], title);
    t.ok(printed <= before + 1, "it is cached again");
  }
  const nowhere = new ModuleCache("/dev/null/wasm");
  const build = () => ({ bytes: Uint8Array.of(1), scratch: [] });
  t.strictSame(await nowhere.module("a", build), build(), "without a folder");
  const endless = new ModuleCache("/proc/x/wasm");
  t.strictSame(await endless.module("a", build), build(), "without a folder");
});
