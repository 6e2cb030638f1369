/** Differences between MPI libraries: three binary interfaces, and their detection. */

/** A communicator, datatype or request, as the library's functions accept it. */
export type Handle = number | bigint;

/** The binary interface of a family of MPI libraries. */
export interface Abi {
  /** Type of a handle in koffi. */
  readonly handle: "int" | "void *";
  readonly statusIgnore: bigint | null;
  /** The thread level for calls from the main thread only. */
  readonly threadFunneled: number;
  readonly commTypeShared: number;
  /** Constants, or the exported objects whose addresses they are. */
  readonly constants: { readonly [C in Constant]: Handle | string };
}

/** Predefined handles. */
export type Constant =
  | "world"
  | "byte"
  | "requestNull"
  | "errorsReturn"
  | "infoNull";

/** The three known interfaces. */
export const ABIS = {
  openMpi: {
    handle: "void *",
    statusIgnore: null,
    threadFunneled: 1,
    commTypeShared: 0,
    constants: {
      world: "ompi_mpi_comm_world",
      byte: "ompi_mpi_byte",
      requestNull: "ompi_request_null",
      errorsReturn: "ompi_mpi_errors_return",
      infoNull: "ompi_mpi_info_null",
    },
  },
  mpich: {
    handle: "int",
    statusIgnore: 1n,
    threadFunneled: 1,
    commTypeShared: 1,
    constants: {
      world: 0x44000000,
      byte: 0x4c00010d,
      requestNull: 0x2c000000,
      errorsReturn: 0x54000001,
      infoNull: 0x1c000000,
    },
  },
  standard: {
    handle: "void *",
    statusIgnore: null,
    threadFunneled: 1024,
    commTypeShared: 221,
    constants: {
      world: 0x101n,
      byte: 0x247n,
      requestNull: 0x180n,
      errorsReturn: 0x142n,
      infoNull: 0x130n,
    },
  },
} as const satisfies { readonly [name: string]: Abi };

/** Facts that a library reports about itself. */
export interface LibraryFacts {
  /** Major version of the standard binary interface; 0 if the library does not implement it. */
  readonly standardMajor: number;
  readonly hasOpenMpiWorld: boolean;
  readonly version: string;
}

/**
 * The interface of a library. Undefined: unknown. The standard one is checked first, because such a library on top of
 * Open MPI also exports Open MPI's symbols.
 */
export function detectAbi(facts: LibraryFacts): Abi | undefined {
  if (facts.standardMajor >= 1) return ABIS.standard;
  if (facts.hasOpenMpiWorld) return ABIS.openMpi;
  return /MPICH|Intel|MVAPICH|CRAY|ParaStation/i.test(facts.version)
    ? ABIS.mpich
    : undefined;
}

/** Variables that launchers set. */
type Environment = { readonly [name: string]: string | undefined };

const LIBRARIES: { readonly [platform: string]: readonly string[] } = {
  linux: [
    "libmpi_abi.so.0",
    "libmpi.so.40",
    "libmpi.so.12",
    "libmpich.so.12",
    "libmpi.so",
  ],
  darwin: [
    "libmpi_abi.0.dylib",
    "libmpi.40.dylib",
    "libmpi.12.dylib",
    "libmpi.dylib",
  ],
};

/** A launcher, detected by its environment variables. */
export interface LauncherFacts {
  /** The library family that can communicate with it. Undefined: there is no launcher, or any library works. */
  readonly family?: "openMpi" | "mpich";
  /** Number of processes that it started. */
  readonly size?: number;
}

/** The launcher of this process. */
export function launcherFacts(environment: Environment): LauncherFacts {
  const set = (...variables: string[]): boolean =>
    variables.some((name) => environment[name] !== undefined);
  const family = set("OMPI_COMM_WORLD_SIZE", "PRTE_LAUNCHED")
    ? "openMpi"
    : set("PMI_RANK", "PMI_FD", "PMI_PORT", "HYDRA_CONTROL_FD")
    ? "mpich"
    : undefined;
  if (!family) return {};
  const sizes = { openMpi: "OMPI_COMM_WORLD_SIZE", mpich: "PMI_SIZE" };
  const size = environment[sizes[family]];
  return { family, ...size === undefined ? {} : { size: Number(size) } };
}

/** Library names to try, in order. The launcher of this process determines the family. */
export function libraryNames(
  platform: string,
  environment: Environment,
): string[] {
  const names = LIBRARIES[platform] ?? [];
  const { family } = launcherFacts(environment);
  const other = { openMpi: /12/, mpich: /40/ };
  return names.filter((name) => !family || !other[family].test(name));
}
