/** The C compiler of this machine. */

import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import process from "node:process";
import { MachineError } from "../../spec/errors.ts";

/** A detected compiler. */
export interface Compiler {
  /** Its command: a name on the path, or a path. */
  readonly command: string;
  /** Its name and version, such as `gcc 12.4`. */
  readonly version: string;
  /** Lanes of the widest vectors of this processor. */
  readonly lanes: number;
  /** Whether this processor has fused multiply-add. */
  readonly fused: boolean;
  /** Whether it adds pairs of products of bytes in 16 bits, instead of four in 32. */
  readonly pairs: boolean;
  /** A hash of everything that determines its output for a text: version and processor. */
  readonly identity: string;
}

/** Commands that are tried if `CC` is not set. */
const COMMANDS = ["cc", "clang", "gcc"] as const;

/**
 * Sums and products are rounded separately, and integers wrap. Only traps and error numbers of functions are disabled,
 * which do not affect values.
 */
const FLAGS = [
  "-std=gnu11",
  "-fno-fast-math",
  "-fno-unsafe-math-optimizations",
  "-ffp-contract=off",
  "-fno-math-errno",
  "-fno-trapping-math",
  "-fwrapv",
  "-fno-strict-aliasing",
  "-fPIC",
  "-w",
] as const;

/** Optimization of compilers without measured options. */
const DEFAULT_OPTIMIZATION = ["-O2"] as const;

/**
 * Optimization by GCC. Kernels are vectorized already. Of the passes of `-O2`, three made them faster: scheduling,
 * vectorization of loops over lanes, and register allocation across calls of local functions. The others double the
 * time of compilation. A register allocation region per loop would add a third or more.
 */
const GCC_OPTIMIZATION = [
  "-O1",
  "-fipa-ra",
  "-fira-region=one",
  "-fschedule-insns2",
  "-ftree-vectorize",
  "-fvect-cost-model=very-cheap",
] as const;

/** The first GCC with all of these options and shuffles of two vectors. */
const FIRST_GCC = 12;

/** Optimization options of a compiler by its version, such as `gcc 12.4`. */
function optimizationOf(version: string): readonly string[] {
  const gcc = /^gcc (\d+)/.exec(version)?.[1];
  return Number(gcc) >= FIRST_GCC ? GCC_OPTIMIZATION : DEFAULT_OPTIMIZATION;
}

/**
 * All options for a processor. `CC` may set the optimization level; options that affect values follow and take
 * precedence. `-Ofast` would make the loading process flush subnormal numbers to 0, whatever follows.
 */
export function compilerFlags(
  given: readonly string[],
  { version = "", processor = "native" }: {
    readonly version?: string;
    readonly processor?: string;
  } = {},
): readonly string[] {
  const optimized = given.map((flag) => flag === "-Ofast" ? "-O3" : flag);
  return [
    ...optimizationOf(version),
    ...optimized,
    `-march=${processor}`,
    ...FLAGS,
  ];
}

/** Compiler macros for processors with fused multiply-add. */
export const FUSED_MACROS = ["__FMA__", "__FP_FAST_FMAF"] as const;

/** Fails without the headers of the C library, which kernels include. */
const HEADERS = `#if !__has_include(<pthread.h>)
#error no headers
#endif
`;

/** Maximum bytes of compiler output that are read. */
const MAX_OUTPUT = 1 << 22;

interface Finished {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Limits of a compiler process. */
export interface RunLimits {
  /** Terminates it and its child processes. */
  readonly signal?: AbortSignal;
  /** Resource limits of it and of each child process. Default: a minute of CPU time and 4 GiB. */
  readonly limits?: { readonly cpuSeconds: number; readonly kibibytes: number };
}

const LIMITS = { cpuSeconds: 60, kibibytes: 4 << 20 };

/** Runs a command with limits, without those that the system does not support. */
const LIMITED =
  'ulimit -t "$1" 2>/dev/null; ulimit -v "$2" 2>/dev/null; shift 2; exec "$@"';

function run(
  command: string,
  args: readonly string[],
  input: string,
  { signal, limits = LIMITS }: RunLimits = {},
): Promise<Finished> {
  return new Promise((resolve) => {
    let child: ChildProcess;
    let out = "";
    let err = "";
    try {
      child = spawn(
        "sh",
        [
          ...["-c", LIMITED, "sh"],
          ...[`${limits.cpuSeconds}`, `${limits.kibibytes}`, command, ...args],
        ],
        // A separate process group is terminated together.
        { stdio: "pipe", detached: signal !== undefined },
      );
    } catch (error) {
      return resolve({ code: null, out, err: String(error) });
    }
    const end = () => {
      try {
        if (child.pid) process.kill(-child.pid, "SIGKILL");
      } catch {
        // It has exited.
      }
    };
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end);
    child.on(
      "error",
      (error) => resolve({ code: null, out, err: error.message }),
    );
    child.stdout!.on("data", (data) => {
      if (out.length < MAX_OUTPUT) out += data;
    });
    child.stderr!.on("data", (data) => {
      if (err.length < MAX_OUTPUT) err += data;
    });
    child.on("close", (code) => {
      signal?.removeEventListener("abort", end);
      resolve({ code, out, err });
    });
    child.stdin!.on("error", () => {});
    child.stdin!.end(input);
  });
}

/** The value of `CC`, a command and options. Undefined if it is not set. */
function namedCompiler(): string | undefined {
  return process.env["CC"]?.trim() || undefined;
}

/** The words of `CC`, or the default commands. */
function candidates(): readonly (readonly string[])[] {
  const named = namedCompiler();
  return named ? [named.split(/\s+/)] : COMMANDS.map((command) => [command]);
}

/** Why `findCompiler` finds none, with the commands that it tries. */
export function whyNoCompiler(): string {
  const named = namedCompiler();
  return named === undefined
    ? `no C compiler with headers was found (${COMMANDS.join(", ")})`
    : `'${named}' in the environment variable CC is no C compiler with headers`;
}

let found: Promise<Compiler | undefined> | undefined;

/** The first compiler that works and has headers. Undefined if there is none. Cached per process. */
export function findCompiler(): Promise<Compiler | undefined> {
  return found ??= search();
}

async function search(): Promise<Compiler | undefined> {
  // Windows has no POSIX threads, which the runtime requires.
  if (process.platform === "win32") return undefined;
  for (const [command, ...args] of candidates()) {
    // All macros of the compiler: its version, and the features of the processor.
    const { code, out } = await run(
      command!,
      [...compilerFlags(args), "-dM", "-E", "-x", "c", "-"],
      HEADERS,
    );
    if (code !== 0) continue;
    const macros = new Map(
      [...out.matchAll(/^#define (\w+) (.*)$/gm)].map(([, name, value]) =>
        [name!, value!] as const
      ),
    );
    const version = ["__clang_major__", "__clang_minor__"].every((m) =>
        macros.has(m)
      )
      ? `clang ${macros.get("__clang_major__")}.${
        macros.get("__clang_minor__")
      }`
      : `gcc ${macros.get("__GNUC__")}.${macros.get("__GNUC_MINOR__")}`;
    return {
      command: [command, ...args].join(" "),
      version,
      lanes: macros.has("__AVX512F__") ? 16 : macros.has("__AVX__") ? 8 : 4,
      fused: FUSED_MACROS.some((macro) => macros.has(macro)),
      pairs: macros.has("__SSSE3__") && !macros.has("__AVX512VNNI__"),
      identity: createHash("sha256").update(out)
        .update(compilerFlags(args, { version }).join(" ")).digest("hex"),
    };
  }
  return undefined;
}

/** A compiler failure. */
export class CompileError extends MachineError {
  override name = "CompileError";
  /** The failure, without a remedy. */
  readonly state: string;
  constructor(state: string) {
    super(
      `Cannot compile a kernel: ${state}. Name another compiler in the environment variable CC, or use --adapter cpu`,
    );
    this.state = state;
  }
}

/** Maximum characters of an optimized text: the cost of optimization is superlinear. */
const MAX_OPTIMIZED = 1 << 20;

/**
 * Compiles a text to a shared object, without optimization if that exceeds the limits. Throws CompileError on failure.
 */
export async function compileObject(
  { command, version }: Compiler,
  text: string,
  { to, ...within }: { readonly to: string } & RunLimits,
): Promise<void> {
  const [first, ...rest] = command.split(" ");
  const compile = (more: readonly string[]) =>
    run(
      first!,
      [
        ...compilerFlags(rest, { version }),
        ...more,
        ...["-shared", "-pthread", "-x", "c", "-", "-o", to, "-lm"],
      ],
      text,
      within,
    );
  let ended = text.length > MAX_OPTIMIZED ? undefined : await compile([]);
  // The compiler reports no error in the text.
  if (!ended || ended.code !== 0 && !/^<stdin>:\d/m.test(ended.err)) {
    ended = await compile(["-O0"]);
  }
  const { code, err } = ended;
  if (code === 0) return;
  const line = err.split("\n").find((line) => /error|failed/.test(line)) ??
    err.slice(0, 200);
  throw new CompileError(
    `${command} ended with ${code ?? "an error"} (${line})`,
  );
}
