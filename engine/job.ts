/** MPI jobs: checks between processes before a run, and gathers after it. */

import type {
  Device,
  RankStatistics,
  TensorDirectory,
  Trace,
  TraceEvent,
  Tracer,
} from "../runtime/mod.ts";
import {
  LOADING_DEADLINE_MS,
  type MpiWorld,
  openWorld,
  type WorldOptions,
} from "../runtime/mpi/mod.ts";
import { MachineError } from "../spec/errors.ts";
import { stringifyPlan } from "../spec/mod.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { sha256 } from "./digest.ts";
import { VERSION } from "./version.ts";

/** The mesh of a plan differs from the number of processes. */
export class RankCountError extends Error {
  override name = "RankCountError";
}

/** Joins the MPI job of this process. Throws MachineError without MPI. */
export async function joinJob(options: WorldOptions = {}): Promise<void> {
  await openWorld(options);
}

/** Facts that must be equal in all processes of a job. */
export interface JobFacts {
  readonly tensors: TensorDirectory;
  readonly kind: Device["kind"];
  readonly equal: { readonly [what: string]: string | Uint8Array };
}

/** Checks that all processes are about to do the same. */
export async function checkJob(
  world: MpiWorld,
  plan: Plan,
  { tensors, kind, equal }: JobFacts,
): Promise<void> {
  if (plan.ranks !== world.size) {
    throw new RankCountError(
      `Cannot run a mesh of ${plan.ranks} ranks on ${world.size} processes. Start as many as the mesh has ranks: 'switchyard launch -n ${plan.ranks} -- …'`,
    );
  }
  const local: { [what: string]: string } = {
    "version of the package": VERSION,
    "kind of device": kind,
    plan: await sha256(stringifyPlan(plan)),
    checkpoint: await sha256(await identityOf(tensors)),
  };
  for (const [what, data] of Object.entries(equal)) {
    local[what] = await sha256(data);
  }
  const texts = await world.gatherTexts(JSON.stringify(local), {
    what: "the comparison of ranks",
    deadlineMs: LOADING_DEADLINE_MS,
  });
  const [first, ...others] = texts.map((text) =>
    JSON.parse(text) as typeof local
  );
  const describe = (rank: number): string =>
    `rank ${rank} on ${world.hosts[rank]!}`;
  const different = others.flatMap((facts, i) => {
    const names = Object.keys({ ...first, ...facts })
      .filter((what) => facts[what] !== first![what])
      .map((what) => `another ${what}`);
    return names.length === 0 ? [] : [`${describe(i + 1)} has ${list(names)}`];
  });
  if (different.length === 0) return;
  throw new MachineError(
    `Cannot run the plan: ${list(different)} than ${
      describe(0)
    }. Give every rank the same command and the same files`,
  );
}

/** Waits until every rank has loaded its weights. */
export async function allLoaded(world: MpiWorld): Promise<void> {
  const deadlineMs = LOADING_DEADLINE_MS;
  await world.barrier(world, { what: "loading weights", deadlineMs });
}

/** Texts between processes. All processes must call each. `what`: the purpose of a text for messages. */
export interface Texts {
  /** Gathers a text of every process, in rank order, on all processes. */
  gatherTexts(text: string, what: string): Promise<readonly string[]>;
  /** Sends a text of rank 0 to all processes, also while runs are in flight. */
  broadcastText(text: string, what: string): Promise<string>;
}

/** Texts between the ranks of a job, which may wait long: some write files. */
export function textsOf(world: MpiWorld | undefined): Texts {
  const waitFor = (what: string) => ({ what, deadlineMs: LOADING_DEADLINE_MS });
  return {
    gatherTexts: async (text, what) =>
      await world?.gatherTexts(text, waitFor(what)) ?? [text],
    broadcastText: async (text, what) =>
      await world?.broadcastText(text, waitFor(what)) ?? text,
  };
}

/** Gathers the statistics of every rank on all ranks. */
export async function gatherStatistics(
  world: MpiWorld,
  local: readonly RankStatistics[],
): Promise<RankStatistics[]> {
  const texts = await world.gatherTexts(JSON.stringify(local), {
    what: "gathering statistics",
  });
  return texts.flatMap((text) => JSON.parse(text) as RankStatistics[]);
}

/** The events of every rank on the clock of rank 0, with each rank as a process. Undefined on other ranks. */
export async function gatherTrace(
  world: MpiWorld,
  tracer: Tracer,
): Promise<Trace | undefined> {
  const wait = { what: "gathering traces" };
  const { traceEvents, displayTimeUnit } = tracer.toTrace();
  // Clocks of processes have different origins: all leave the barrier at the same time.
  await world.barrier(world, wait);
  const local = new TextEncoder().encode(
    JSON.stringify({ met: tracer.now(), traceEvents }),
  );
  const lengths = await world.gatherTexts(String(local.length), wait);
  const parts = await world.gather(local, lengths.map(Number), {
    ...wait,
    everywhere: false,
  });
  if (!parts) return undefined;
  const traces = parts.map((bytes) =>
    JSON.parse(new TextDecoder().decode(bytes)) as {
      readonly met: number;
      readonly traceEvents: readonly TraceEvent[];
    }
  );
  return {
    traceEvents: traces.flatMap((trace, rank) => {
      const later = 1000 * (traces[0]!.met - trace.met);
      return [
        nameOf(rank, `rank ${rank} on ${world.hosts[rank]!}`),
        ...trace.traceEvents.map((event) => ({
          ...event,
          pid: rank,
          ts: event.ph === "M" ? 0 : event.ts + later,
        })),
      ];
    }),
    displayTimeUnit,
  };
}

function nameOf(pid: number, name: string): TraceEvent {
  return {
    name: "process_name",
    cat: "",
    ph: "M",
    pid,
    tid: 0,
    ts: 0,
    args: { name },
  };
}

/** Maximum bytes of a checkpoint that is compared completely. */
const COMPLETE_BYTES = 2 ** 24;

/** For larger checkpoints: bytes per sample; maximum samples of all tensors together, and of one. */
const SAMPLE_BYTES = 2 ** 14, SAMPLES = 1024, TENSOR_SAMPLES = 16;

/**
 * Identity of the tensors of a checkpoint, in whatever files: their descriptions, and all their bytes; of more than 16
 * MiB, samples of each tensor, or of every n-th if there are many. Reading all would take as long on every rank as
 * loading the checkpoint.
 */
async function identityOf(tensors: TensorDirectory): Promise<string> {
  const sorted = [...tensors].sort(([a], [b]) => a < b ? -1 : 1)
    .map(([, entry]) => entry);
  const total = sorted.reduce((sum, { bytes }) => sum + bytes, 0);
  const isComplete = total <= COMPLETE_BYTES;
  const every = isComplete ? 1 : Math.ceil(sorted.length / SAMPLES);
  const pieces = isComplete ? 1 : Math.min(
    TENSOR_SAMPLES,
    Math.max(1, Math.floor(SAMPLES / sorted.length)),
  );
  const seen: string[] = [];
  for (const [i, tensor] of sorted.entries()) {
    const { name, dtype, shape, bytes, source, offset } = tensor;
    seen.push(JSON.stringify([name, dtype, shape, bytes]));
    if (i % every !== 0) continue;
    const length = isComplete ? bytes : Math.min(SAMPLE_BYTES, bytes);
    for (let piece = 1; piece <= pieces; piece++) {
      const at = offset + Math.floor((bytes - length) * piece / pieces);
      seen.push(await sha256(await source.read(at, length)));
    }
  }
  return seen.join("\n");
}

/** A list of names, the last after 'and'. */
function list(names: readonly string[]): string {
  return names.join(", ").replace(/, ([^,]*)$/, " and $1");
}
