/** Layout of shared memory below the buffers: control words, and the arena of the running batch. */

/** Words of the control block, at address 0. */
export const CONTROL = {
  /** Increments when the first worker has work; it sleeps on this word. */
  work: 0,
  /** Increments when the other workers have work; they sleep on this word. */
  signal: 1,
  /** Record shared by all workers, or the last shared one of a running batch, in words from address 0; 0 is none. */
  current: 2,
  /** Number of workers sleeping on `signal`. */
  sleepers: 3,
  /** The first worker sleeps until a shared launch is done. */
  waiting: 4,
  /** Words of the batch in the arena; 0 is none. */
  batch: 5,
  /** Number of messages sent to the workers; a worker that has received fewer leaves to read them. */
  mail: 6,
  /** One word per worker: it is reading the current record. */
  inside: 64,
  /** One word per worker: address of its scratch memory. */
  scratch: 128,
} as const;

/** Maximum number of workers in the control block. */
export const MAX_THREADS = 64;
/** Address of the arena with the records of running launches. */
export const ARENA_ADDRESS = 4096;
/** Bytes of the arena. */
export const ARENA_BYTES = 4 << 20;
/** Start of the buffers. */
export const HEAP_ADDRESS = ARENA_ADDRESS + ARENA_BYTES;

/** A launch that one thread finishes sooner is not shared: sharing costs microseconds even with awake workers. */
export const SHARE_FROM_MS = 0.005;
