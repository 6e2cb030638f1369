/** The functions of this machine's MPI library, called through koffi. Both are optional and loaded on demand. */

import { fstatSync } from "node:fs";
import process from "node:process";
import type { LibraryHandle } from "koffi";
import { MachineError } from "../../spec/errors.ts";
import { importKoffi } from "../koffi.ts";
import {
  type Abi,
  type Constant,
  detectAbi,
  type Handle,
  launcherFacts,
  libraryNames,
} from "./abi.ts";

/** An argument of an MPI function: a number, a handle, memory in place, or a null pointer. */
export type Argument = Handle | ArrayBufferView | null;

/** A loaded MPI library. */
export interface Binding {
  readonly abi: Abi;
  /** `MPI_Get_library_version`, its first line. */
  readonly version: string;
  readonly constants: { readonly [C in Constant]: Handle };
  /** Calls `MPI_<name>`. Throws MachineError if it returns an error. */
  call(name: FunctionName, ...args: Argument[]): void;
  /** Calls `MPI_<name>`. Returns the text of its error, or undefined. */
  attempt(name: FunctionName, ...args: Argument[]): string | undefined;
  /** Memory for a returned handle. */
  newHandle(value?: Handle): Int32Array | BigUint64Array;
  /** Sleeps without the event loop, for pauses between polls that are shorter than a timer allows. */
  sleep(microseconds: number): void;
}

/** Parameters of the used functions: p a pointer, i an int, h a handle. */
const FUNCTIONS = {
  Init_thread: "ppip",
  Comm_rank: "hp",
  Comm_size: "hp",
  Comm_set_errhandler: "hh",
  Comm_split: "hiip",
  Comm_split_type: "hiihp",
  Type_contiguous: "ihp",
  Type_commit: "p",
  Type_free: "p",
  Comm_free: "p",
  Error_string: "ipp",
  Isend: "pihiihp",
  Irecv: "pihiihp",
  Ialltoallv: "ppphppphhp",
  Test: "ppp",
  Abort: "hi",
  Finalize: "",
} as const;

/** A function of MPI, without its prefix. */
export type FunctionName = keyof typeof FUNCTIONS;

/** A function that starts a request, its last parameter. */
export type StartName = "Isend" | "Irecv" | "Ialltoallv";

/** Maximum text length of any library, in bytes. */
const TEXT_BYTES = 8192;

/** `PR_SET_TIMERSLACK` of Linux. */
const SET_TIMER_SLACK = 29;
const TIMER_SLACK_NANOSECONDS = 1000;

const INSTALL =
  "Install one, such as the Debian package 'openmpi-bin' or 'mpich', and start the command with its mpirun";

// A library is unloaded when its handle and functions are collected, so they are retained.
let loaded: Promise<Binding> | undefined;

/** Loads the MPI library, once. Throws MachineError without a library or koffi. */
export function loadBinding(): Promise<Binding> {
  return loaded ??= load();
}

async function load(): Promise<Binding> {
  const koffi = await koffiForMpi();
  checkSocket();
  setEnvironment();
  const names = libraryNames(process.platform, process.env);
  let library: LibraryHandle | undefined;
  for (const name of names) {
    try {
      // Open MPI's dynamically loaded components look up its symbols globally.
      library = koffi.load(name, { global: true, lazy: true });
      break;
    } catch {
      // The next name may exist.
    }
  }
  if (!library) {
    throw new MachineError(
      `Cannot use MPI: there is no MPI library (${
        names.join(", ") || `none is known for '${process.platform}'`
      }). ${INSTALL}`,
    );
  }
  return bind(library);
}

/** Checks for the optional package. Throws MachineError if it is missing. */
export async function requireKoffi(): Promise<void> {
  await koffiForMpi();
}

async function koffiForMpi(): Promise<typeof import("koffi")> {
  try {
    return await importKoffi();
  } catch (error) {
    throw new MachineError(
      `Cannot use MPI: the optional package 'koffi' could not be loaded (${
        error instanceof Error ? error.message.split("\n")[0] : String(error)
      }). Install it with 'npm install koffi@3.3.4'`,
    );
  }
}

/**
 * MPICH's launcher passes each process the number of an open socket. Node.js passes only the standard streams to its
 * child processes, so below `npx` the number is set but the socket is closed.
 */
function checkSocket(): void {
  const number = process.env["PMI_FD"];
  if (launcherFacts(process.env).family !== "mpich" || !number) return;
  try {
    if (fstatSync(Number(number)).isSocket()) return;
  } catch {
    // No file has that number.
  }
  throw new MachineError(
    "Cannot join the job: the socket of MPICH's launcher is not passed through 'npx'. Give mpirun the flag -pmi-port, or start node_modules/.bin/switchyard without npx",
  );
}

/**
 * UCX, used by both families, patches memory functions of the running process while V8's threads call them, which
 * crashes one start in twenty or so. No device memory is sent by MPI here, so this is disabled. A process without a
 * launcher shares memory with no other, and its files in /dev/shm would not be removed.
 */
function setEnvironment(): void {
  process.env["UCX_MEM_EVENTS"] ??= "n";
  process.env["UCX_MEM_MMAP_HOOK_MODE"] ??= "none";
  process.env["UCX_ERROR_SIGNALS"] ??= "";
  const launched = Object.keys(process.env).some((name) =>
    /^(PMI|OMPI_COMM_|SLURM_PROCID$)/.test(name)
  );
  if (!launched) process.env["OMPI_MCA_btl"] ??= "self";
}

function bind(library: LibraryHandle): Binding {
  const symbol = (name: string): bigint | undefined => {
    try {
      return library.symbol(name) as bigint;
    } catch {
      return undefined;
    }
  };
  const version = libraryVersion(library);
  const abi = detectAbi({
    version,
    standardMajor: symbol("MPI_Abi_get_version") === undefined
      ? 0
      : standardMajor(library),
    hasOpenMpiWorld: symbol("ompi_mpi_comm_world") !== undefined,
  });
  if (!abi) {
    throw new MachineError(
      `Cannot use MPI: the library is '${version}', whose binary interface is not known. Use Open MPI, MPICH or another that has the standard interface`,
    );
  }
  const types = { p: "void *", i: "int", h: abi.handle };
  const functions = Object.fromEntries(
    Object.entries(FUNCTIONS).map(([name, parameters]) => [
      name,
      library.func(
        `MPI_${name}`,
        "int",
        [...parameters].map((kind) => types[kind as keyof typeof types]),
      ) as (...args: Argument[]) => number,
    ]),
  );
  const constants = Object.fromEntries(
    Object.entries(abi.constants).map(([name, value]) => [
      name,
      typeof value === "string" ? symbol(value)! : value,
    ]),
  ) as Binding["constants"];
  const usleep = library.func("int usleep(unsigned int microseconds)");
  try {
    // Linux adds 50 microseconds to every sleep of a thread by default.
    library.func("int prctl(int option, unsigned long value)")(
      SET_TIMER_SLACK,
      TIMER_SLACK_NANOSECONDS,
    );
  } catch {
    // Other systems have neither the call nor the delay.
  }
  const attempt: Binding["attempt"] = (name, ...args) => {
    const code = functions[name]!(...args);
    return code === 0 ? undefined : errorText(functions["Error_string"]!, code);
  };
  return {
    abi,
    version,
    constants,
    attempt,
    call: (name, ...args) => {
      const problem = attempt(name, ...args);
      if (problem === undefined) return;
      throw new MachineError(
        `Cannot exchange with other ranks: MPI_${name} says '${problem}'. Check that every rank runs the same command`,
      );
    },
    newHandle: (value) =>
      abi.handle === "int"
        ? Int32Array.of(Number(value ?? 0))
        : BigUint64Array.of(BigInt(value ?? 0)),
    sleep: (microseconds) => {
      usleep(microseconds);
    },
  };
}

/** Called before MPI is initialized, which the standard allows. */
function libraryVersion(library: LibraryHandle): string {
  const text = Buffer.alloc(TEXT_BYTES);
  const length = new Int32Array(1);
  library.func("int MPI_Get_library_version(void *text, void *length)")(
    text,
    length,
  );
  return textOf(text, length[0]!).split("\n")[0]!.trim();
}

function standardMajor(library: LibraryHandle): number {
  const [major, minor] = [new Int32Array([-1]), new Int32Array([-1])];
  library.func("int MPI_Abi_get_version(void *major, void *minor)")(
    major,
    minor,
  );
  return major[0]!;
}

function errorText(
  errorString: (...args: Argument[]) => number,
  code: number,
): string {
  const text = Buffer.alloc(TEXT_BYTES);
  const length = new Int32Array(1);
  errorString(code, text, length);
  return textOf(text, length[0]!);
}

function textOf(text: Buffer, length: number): string {
  return text.toString("utf8", 0, length).replace(/\0.*$/s, "").trim();
}
