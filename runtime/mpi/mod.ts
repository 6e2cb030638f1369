/** Ranks as the processes of an MPI job. The library and `koffi` are optional, and loaded by `openWorld`. */

export { requireKoffi } from "./binding.ts";
export {
  createMpiCommunicator,
  type MpiCommunicatorOptions,
} from "./communicator.ts";
export {
  LOADING_DEADLINE_MS,
  type MpiGroup,
  MpiWorld,
  openWorld,
  type RankPlace,
  rankPlace,
  type Wait,
} from "./world.ts";
