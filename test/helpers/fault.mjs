/**
 * Injects a fault into one rank of an MPI job. Loaded by `node --import` into every process of the job; acts only in
 * the rank that SWITCHYARD_FAULT names, as JSON of `{ rank, kind, folder? }`:
 *
 *   kill, throw, stop   prints the time in its first dispatch, then is killed, throws, or is stopped by a signal
 *   leave               the same, but exits with code 0
 *   early               is killed at start
 *   stray               reports another step than a dispatch to the other ranks
 *   folder              works in another folder, as on a host with different files
 */

import { readSync } from "node:fs";
import process from "node:process";

const fault = JSON.parse(process.env.SWITCHYARD_FAULT ?? "{}");
const rank = process.env.OMPI_COMM_WORLD_RANK ?? process.env.PMI_RANK;

if (rank !== undefined && Number(rank) === fault.rank) {
  if (fault.kind === "folder") process.chdir(fault.folder);
  else if (fault.kind === "early") process.kill(process.pid, "SIGKILL");
  else breakExchange(fault.kind);
}

/** Wraps MPI functions that koffi returns, after koffi is loaded. */
function breakExchange(kind) {
  const { dlopen } = process;
  const where = kind === "stray" ? "MPI_Isend" : "MPI_Ialltoallv";
  let done = false;
  process.dlopen = (module, file, ...rest) => {
    dlopen.call(process, module, file, ...rest);
    if (!/koffi\.node$/.test(file)) return;
    const { load } = module.exports;
    module.exports.load = (...args) => {
      const library = load(...args);
      const func = library.func.bind(library);
      const value = (...declaration) => {
        const call = func(...declaration);
        if (declaration[0] !== where) return call;
        return (...values) => {
          if (done || !/dispatch/.test(note())) return call(...values);
          done = kind !== "stray";
          return fail(kind, values, call);
        };
      };
      return Object.defineProperty(library, "func", { value });
    };
  };
}

/** Buffers that MPI may still read. */
const strays = [];

function fail(kind, values, call) {
  process.stderr.write(`fault at ${Date.now()}\n`);
  if (kind === "throw") throw new Error("a fault that a test made");
  if (kind === "leave") process.exit(0);
  if (kind === "stray") {
    const [header, ...rest] = values;
    const { buffer, byteOffset, byteLength } = header;
    const other = Buffer.from(
      new Uint8Array(buffer, byteOffset, byteLength).slice(),
    );
    other.write("compute ", other.indexOf("dispatch"));
    strays.push(other);
    return call(other, ...rest);
  }
  // The exchange is in flight when the fault occurs.
  const result = call(...values);
  process.kill(process.pid, kind === "kill" ? "SIGKILL" : "SIGSTOP");
  return result;
}

/** Returns the step that the rank reports. */
function note() {
  const bytes = Buffer.alloc(200);
  return bytes.toString("utf8", 0, readSync(0, bytes, 0, 200, 0))
    .split("\n")[0];
}
