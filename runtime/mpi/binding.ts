/** The functions of the MPI library of this machine, called through koffi. Both are optional and loaded when first asked for. */

import { fstatSync } from "node:fs";
import process from "node:process";
import type { LibraryHandle } from "koffi";
import { MachineError } from "../../spec/errors.ts";
import {
  type Abi,
  type Constant,
  detectAbi,
  type Handle,
  launcherFacts,
  libraryNames,
} from "./abi.ts";

/** What an MPI function takes: numbers, handles, memory in place, or a null pointer. */
export type Argument = Handle | ArrayBufferView | null;

/** An MPI library, ready to be called. */
export interface Binding {
  readonly abi: Abi;
  /** `MPI_Get_library_version`, its first line. */
  readonly version: string;
  readonly constants: { readonly [C in Constant]: Handle };
  /** Call `MPI_<name>`. Throws MachineError where it returns an error. */
  call(name: FunctionName, ...args: Argument[]): void;
  /** Call `MPI_<name>`; the text of the error that it returns, or undefined. */
  attempt(name: FunctionName, ...args: Argument[]): string | undefined;
  /** Memory for a handle that a function returns. */
  newHandle(value?: Handle): Int32Array | BigUint64Array;
  /** Sleep without the event loop; for pauses between polls that are shorter than a timer can be. */
  sleep(microseconds: number): void;
}

/** Parameters of the functions that are used: p a pointer, i an int, h a handle. */
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

/** One that starts a request, its last parameter. */
export type StartName = "Isend" | "Irecv" | "Ialltoallv";

/** Longest text of any library, in bytes. */
const TEXT_BYTES = 8192;

/** `PR_SET_TIMERSLACK` of Linux. */
const SET_TIMER_SLACK = 29;
const TIMER_SLACK_NANOSECONDS = 1000;

const INSTALL =
  "Install one, such as the Debian package 'openmpi-bin' or 'mpich', and start the command with its mpirun";

// A library is unloaded once its handle and functions are collected, so they are kept.
let loaded: Promise<Binding> | undefined;

/** Load the MPI library, once. Throws MachineError where there is none, or no koffi. */
export function loadBinding(): Promise<Binding> {
  return loaded ??= load();
}

async function load(): Promise<Binding> {
  const koffi = await importKoffi();
  checkSocket();
  setEnvironment();
  const names = libraryNames(process.platform, process.env);
  let library: LibraryHandle | undefined;
  for (const name of names) {
    try {
      // Components that Open MPI opens later look its symbols up globally.
      library = koffi.load(name, { global: true, lazy: true });
      break;
    } catch {
      // The next name may be there.
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

/** Make sure that the optional package is there. Throws MachineError where it is not. */
export async function requireKoffi(): Promise<void> {
  await importKoffi();
}

async function importKoffi(): Promise<typeof import("koffi")> {
  try {
    return await import("koffi");
  } catch (error) {
    throw new MachineError(
      `Cannot use MPI: the optional package 'koffi' could not be loaded (${
        error instanceof Error ? error.message.split("\n")[0] : String(error)
      }). Install it with 'npm install koffi@3.3.4'`,
    );
  }
}

/**
 * MPICH's launcher gives each process a socket and tells it the number. Node passes no more than the standard streams on
 * to the programs that it starts, so below `npx` the number is there and the socket is not.
 */
function checkSocket(): void {
  const number = process.env["PMI_FD"];
  if (launcherFacts(process.env).family !== "mpich" || !number) return;
  try {
    if (fstatSync(Number(number)).isSocket()) return;
  } catch {
    // Nothing has that number.
  }
  throw new MachineError(
    "Cannot join the job: the socket of MPICH's launcher does not come through 'npx'. Give mpirun the flag -pmi-port, or start node_modules/.bin/switchyard without npx",
  );
}

/**
 * UCX, below both families, patches memory functions of the running process while V8's threads call them, which crashes
 * one start in twenty or so. No device memory goes through MPI here, so it is asked not to. A process that no launcher
 * started has nobody to share memory with, and nobody would remove what it leaves in /dev/shm.
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
    // Linux adds 50 microseconds to every sleep of a thread unless asked otherwise.
    library.func("int prctl(int option, unsigned long value)")(
      SET_TIMER_SLACK,
      TIMER_SLACK_NANOSECONDS,
    );
  } catch {
    // Other systems have no such call, and no such habit.
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

/** Asked before MPI is initialised, which the standard allows. */
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
