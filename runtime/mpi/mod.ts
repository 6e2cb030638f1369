/** Ranks as processes of an MPI job. The library and `koffi` are optional; `openWorld` loads them. */

export { requireKoffi } from "./binding.ts";
export { createMpiCommunicator } from "./communicator.ts";
export { PeerError } from "./progress_engine.ts";
export {
  DEADLINE_MS,
  type ExchangedBlocks,
  LOADING_DEADLINE_MS,
  type MpiGroup,
  MpiWorld,
  openWorld,
  type RankIdentity,
  rankIdentity,
  type Wait,
  type WorldOptions,
} from "./world.ts";
