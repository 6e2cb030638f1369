/** Kernels in C by gcc and clang, for SSE2, AVX2, AVX-512 and NEON: the bits of WebAssembly. */
// needs: cpu
// rotates with: runtime/native/, runtime/vector/, compiler/kernels/

import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import fc from "fast-check";
import t from "tap";
import { matmul } from "../compiler/kernels/mod.ts";
import { matmulGrid } from "../compiler/tuning/mod.ts";
import { compilerFlags } from "../runtime/native/compiler.ts";
import { printKernel } from "../runtime/native/print.ts";
import { vectorsInC } from "../runtime/native/vectors.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import type { Kernel } from "../spec/kernel/tree.ts";
import { evaluateSize } from "../spec/size.ts";
import { LENGTH, randomKernel } from "./fuzz/random_kernel.ts";
import { FUNCTIONS, functions, INPUTS } from "./helpers/functions_kernel.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { runWasm } from "./helpers/run_wasm.ts";
import { repeatWith } from "./helpers/seed.ts";

interface Target {
  readonly compiler: readonly string[];
  readonly processor: string;
  readonly lanes: number;
  /** Required features of this machine's processor, by their Linux names. */
  readonly features?: readonly string[];
  /** Linker and emulator of programs for another processor. */
  readonly linker?: string;
  readonly runner?: string;
}

const AVX512 = ["avx512f", "avx512bw", "avx512vl", "avx512_vnni"];
const WIDTHS = [
  { processor: "x86-64", lanes: 4, flags: [] },
  { processor: "x86-64-v3", lanes: 8, flags: [], features: ["avx2"] },
  {
    processor: "x86-64-v4",
    lanes: 16,
    flags: ["-mavx512vnni"],
    features: AVX512,
  },
];
const ARM_LIBRARY = "/usr/aarch64-linux-gnu";
const CROSS = [
  ["aarch64-linux-gnu-gcc"],
  ["clang", "--target=aarch64-linux-gnu", `-isystem${ARM_LIBRARY}/include`],
];
const BUILDS: readonly Target[] = [
  ...["gcc", "clang"].flatMap((name) =>
    WIDTHS.map(({ flags, ...width }) => ({
      compiler: [name, ...flags],
      ...width,
    }))
  ),
  ...["armv8-a", "armv8.2-a+dotprod"].map((processor, i) => ({
    compiler: CROSS[i]!,
    processor,
    lanes: 4,
    linker: "aarch64-linux-gnu-gcc",
    runner: "qemu-aarch64",
  })),
];

/** A kernel, its bindings and its grid. */
interface Case {
  readonly kernel: Kernel;
  readonly words: { readonly [binding: string]: Uint32Array };
  readonly groups: readonly [number, number, number];
}

function floats(length: number, of: (i: number) => number): Uint32Array {
  return new Uint32Array(Float32Array.from({ length }, (_, i) => of(i)).buffer);
}

/** All functions of floats. */
function allFunctions(): Case {
  const special = [0, -0, 1e-40, Infinity, -Infinity, 89, -104, 65520];
  return {
    kernel: functions,
    words: {
      x: floats(INPUTS, (i) => special[i] ?? (i - 20) * 0.37),
      y: new Uint32Array(INPUTS * FUNCTIONS.length),
    },
    groups: [2, 1, 1],
  };
}

/**
 * A product with bf16 weights [n, k], transposed on load. With `right: "workgroup"`, lanes of a row sum different
 * blocks of a column.
 */
function product(right?: "workgroup", rows = 4): Case {
  const [columns, k] = [48, 256];
  const shape = {
    name: "product",
    k,
    segments: 4,
    columns,
    bindings: [
      { name: "x", type: "f32", access: "read" },
      { name: "w", type: "u32", access: "read" },
      { name: "y", type: "f32", access: "write" },
    ] as const,
    weights: [
      { binding: "w", stored: "bf16", inside: "k", rowStride: k } as const,
    ],
    tile: right
      ? { rows: 2, columns: 1, lanes: 16, split: 4, right, vector: 2 }
      : { rows: 3, columns: 2, lanes: 16 },
    rows: u32(rows),
  };
  const kernel = matmul({
    ...shape,
    leftRow: (row) => mul(row, u32(k)),
    left: (base, at) => load("x", add(base, at)),
    epilogue: ({ row, column }, [sum]) => [
      store("y", add(mul(row, u32(columns)), column), sum!),
    ],
  });
  return {
    kernel,
    words: {
      x: floats(rows * k, (i) => Math.sin(i * 1.37)),
      w: floats(k * columns / 2, (i) => Math.cos(i * 0.71)),
      y: new Uint32Array(rows * columns),
    },
    groups: matmulGrid(shape, rows).map((size) =>
      evaluateSize(size, () => NaN)
    ) as [number, number, number],
  };
}

/** Random kernels, including packed bytes. Workgroups are multiples of the vector length, for every length. */
function random(): Case[] {
  const numbers = fc.array(fc.nat(2 ** 20), {
    minLength: 50,
    maxLength: 250,
    size: "max",
  });
  const kernels = fc.sample(numbers, 40).map((n) => randomKernel(n))
    .filter(({ workgroupSize }) => workgroupSize % 16 === 0);
  return kernels.slice(0, 6).map((kernel) => ({
    kernel,
    words: {
      a: floats(LENGTH, (i) => (i - 40) * 0.75),
      n: Uint32Array.from({ length: LENGTH }, (_, i) => (i * 7919) % 101),
      y: new Uint32Array(LENGTH),
      z: new Uint32Array(LENGTH),
    },
    groups: [2, 1, 1],
  }));
}

const MAIN = `
static void run(kernel_function *f, u scratch, u x, u y, u z, const u *lengths, u count) {
  struct launch *l = calloc(1, sizeof *l + count * sizeof l->bindings[0]);
  l->words = 1;
  const uint32_t stop = 0;
  l->x = x; l->y = y;
  for (u i = 0; i < count; i++) {
    u *words = aligned_alloc(64, (4 * lengths[i] + 255) / 64 * 64);
    if (fread(words += 16, 4, lengths[i], stdin) != lengths[i]) exit(2);
    l->bindings[i].address = words;
    l->bindings[i].length = lengths[i];
  }
  f(l, 0, x * y * z, aligned_alloc(64, (scratch + 127) / 64 * 64), &stop);
  for (u i = 0; i < count; i++) fwrite(l->bindings[i].address, 4, lengths[i], stdout);
}
`;

/** A program that reads the bindings of all cases, runs the kernels, and writes the bindings. */
function programOf(cases: readonly Case[], lanes: number): string {
  const printed = cases.flatMap(({ kernel }) => printKernel(kernel, { lanes }));
  const calls = cases.map(({ kernel, words, groups }, i) => {
    const lengths = kernel.bindings.map(({ name }) => words[name]!.length);
    const { scratch } = printed[i]!;
    return `  run(f${i}, ${scratch}, ${groups.join(", ")}, (u[]){ ${
      lengths.join(", ")
    } }, ${lengths.length});`;
  });
  return [
    vectorsInC({ lanes, fused: false, bytes: true }),
    "#include <stdio.h>\n#include <stdlib.h>",
    ...printed.map(({ text }, i) => `static void f${i}${text}`),
    MAIN,
    `int main(void) {\n${calls.join("\n")}\n  return 0;\n}\n`,
  ].join("\n");
}

/** Runs a command; returns its standard output. */
function output(
  command: string,
  args: readonly string[],
  input: string | Uint8Array,
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: "pipe" });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout.on("data", (data: Buffer) => out.push(data));
    child.stderr.on("data", (data: Buffer) => err.push(data));
    child.on("error", reject);
    child.on(
      "close",
      (code) =>
        code === 0
          ? resolve(Buffer.concat(out))
          : reject(new Error(`${command}: ${code} ${Buffer.concat(err)}`)),
    );
    child.stdin.end(input);
  });
}

function isInstalled(command: string): boolean {
  return (process.env["PATH"] ?? "").split(path.delimiter)
    .some((folder) => existsSync(path.join(folder, command)));
}

const PROCESSOR = existsSync("/proc/cpuinfo")
  ? readFileSync("/proc/cpuinfo", "utf8")
  : "";

/** Reason for skipping a target, or false. */
function whyNot(target: Target): false | string {
  const { compiler, linker, runner } = target;
  const needed = [compiler[0]!, linker ?? [], runner ?? []].flat();
  const missing = needed.find((command) => !isInstalled(command));
  if (missing !== undefined) return `there is no ${missing}`;
  if (runner && !existsSync(ARM_LIBRARY)) {
    return "there is no C library for aarch64";
  }
  const isForeign = !runner && process.arch !== "x64";
  return isForeign && "this is no x86-64 machine";
}

/** Reason for only compiling for a target, or false. */
function whyOnlyCompiled({ features = [] }: Target): false | string {
  const lacks = features.find((f) => !new RegExp(`\\b${f}\\b`).test(PROCESSOR));
  return lacks !== undefined && `this processor has no ${lacks}`;
}

/** Words of all bindings, with NaNs canonicalized. */
function wordsOf(all: readonly Uint32Array[]): Uint32Array {
  const words = all.flatMap((words) => [...words]);
  return Uint32Array.from(
    words,
    (word) => (word & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : word,
  );
}

function bindingsOf({ kernel, words }: Case): Uint32Array[] {
  return kernel.bindings.map(({ name }) => words[name]!);
}

const unasked = skipUnasked("cpu");
const cases = unasked ? [] : [
  allFunctions(),
  product(),
  product("workgroup"),
  product("workgroup", 1),
  ...random(),
];
const input = new Uint8Array(
  Uint32Array.from(cases.flatMap(bindingsOf).flatMap((w) => [...w])).buffer,
);
for (const { kernel, words, groups } of cases) runWasm(kernel, words, groups);
const wanted = wordsOf(cases.flatMap(bindingsOf));

for (const target of BUILDS) {
  const { compiler, processor, lanes, linker, runner } = target;
  const skip = unasked || whyNot(target);
  t.test(`${compiler.join(" ")}, ${processor}`, { skip }, async (t) => {
    const program = path.join(t.testdir(), "program");
    const [command, ...flags] = compiler;
    const version = command!.endsWith("gcc")
      ? `gcc ${await output(command!, ["-E", "-P", "-"], "__GNUC__")}`
      : "";
    await output(command!, [
      ...compilerFlags(flags, { version, processor }),
      ...["-x", "c", "-", "-c", "-o", `${program}.o`],
    ], programOf(cases, lanes));
    const link = [`${program}.o`, "-o", program, "-lm"];
    await output(
      linker ?? command!,
      linker ? ["-static", ...link] : link,
      "",
    );
    const only = whyOnlyCompiled(target);
    if (only) return t.pass("the same bits", { skip: only });
    const bytes = runner
      ? await output(runner, [program], input)
      : await output(program, [], input);
    const found = wordsOf([new Uint32Array(Uint8Array.from(bytes).buffer)]);
    t.equal(found.length, wanted.length);
    const at = found.findIndex((word, i) => word !== wanted[i]);
    t.equal(at, -1, `word ${at} of all bindings. ${repeatWith()}`);
  });
}
