/** Compares replicas with expert parallelism: the load from which the other one is faster. */

import {
  compileReplica,
  type ReplicaPlan,
  type SearchTask,
  stepReplica,
} from "./evaluate.ts";
import { type ReplicaMesh, replicaRanks } from "./meshes.ts";
import type { Found } from "./found.ts";

/** Two meshes with equal numbers of devices, and the load at which the other one becomes faster. */
export interface Crossover {
  /** The smallest replica, and the best one with more ranks for experts. */
  readonly replicas: ReplicaMesh;
  readonly experts: ReplicaMesh;
  /** Compared loads of a device: sequences, or tokens. */
  readonly from: number;
  readonly to: number;
  /** The faster one at `from`. */
  readonly first: "replicas" | "experts";
  /** The load at which the other one becomes faster. Undefined: never. */
  readonly at: number | undefined;
  /** The load of the smallest replica for `exchanged`, `saved` and `speed`. */
  readonly load: number;
  /** Seconds of a device per token: additional exchange time with sharded experts, and saved memory time. */
  readonly exchanged: number;
  readonly saved: number;
  /** Speedup of replicas. */
  readonly speed: number;
}

/** Maximum compared loads, unless kernels could not index that much. Memory is checked elsewhere. */
const MAX_LOAD = { decode: 256, prefill: 2048, train: 1 } as const;

/** Compares the smallest replica that fits with the best one with more ranks. */
export async function findCrossover(
  task: SearchTask,
  found: readonly Found[],
  { max = Math.min(MAX_LOAD[task.phase], task.context) } = {},
): Promise<Crossover | undefined> {
  const min = Math.min(...found.map(({ mesh }) => replicaRanks(mesh)));
  const small = found.find(({ mesh }) => replicaRanks(mesh) === min);
  const large = found.find(({ mesh }) =>
    mesh.ep > (small?.mesh.ep ?? 0) && mesh.tp === small?.mesh.tp
  );
  if (!small || !large) return undefined;
  const [a, b] = [
    await compileReplica(task, small.mesh, { load: max }),
    await compileReplica(task, large.mesh, { load: max }),
  ];
  if ("why" in a || "why" in b) {
    return max > 1
      ? await findCrossover(task, found, { max: Math.floor(max / 2) })
      : undefined;
  }
  const from = task.phase === "decode" ? 1 : Math.min(16, max);
  const known = new Map<string, number>();
  const each = (of: ReplicaPlan, load: number) => {
    const key = `${of.ranks} ${load}`;
    const seconds = known.get(key) ??
      stepReplica(task, of, load).step.seconds / load;
    known.set(key, seconds);
    return seconds;
  };
  const isFaster = (load: number) => each(a, load) <= each(b, load);
  const first = isFaster(from);
  const at = firstOther(isFaster, from, max);
  const load = Math.min(max, Math.max(1, small.step.of.load));
  const [x, y] = [a, b].map((of) => stepReplica(task, of, load).step);
  return {
    replicas: small.mesh,
    experts: large.mesh,
    from,
    to: max,
    first: first ? "replicas" : "experts",
    at,
    load,
    exchanged: (y!.parts.exchange - x!.parts.exchange) / load,
    saved: (x!.parts.memory - y!.parts.memory) / load,
    speed: y!.seconds / x!.seconds,
  };
}

/** The smallest value at which `test` differs from `from`: by doubling, then by bisection. */
function firstOther(
  test: (value: number) => boolean,
  from: number,
  to: number,
): number | undefined {
  const first = test(from);
  let [low, high] = [from, 2 * from];
  while (high <= to && test(high) === first) [low, high] = [high, 2 * high];
  if (high > to) return undefined;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (test(middle) === first) low = middle;
    else high = middle;
  }
  return high;
}
