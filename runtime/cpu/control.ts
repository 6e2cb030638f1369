/** The layout of shared memory below the buffers: control words, and the arena of the batch that is running. */

/** Words of the control block, at address 0. */
export const CONTROL = {
  /** Counts up when the first worker has something to do; it sleeps on this word. */
  work: 0,
  /** Counts up when the other workers have something to do; they sleep on this word. */
  signal: 1,
  /** Record that all workers share, or the last they shared of a batch that is running, in words from address 0; 0 is none. */
  current: 2,
  /** How many workers sleep on `signal`. */
  sleepers: 3,
  /** The first worker sleeps until a shared launch is done. */
  waiting: 4,
  /** Words of the batch in the arena; 0 is none. */
  batch: 5,
  /** Messages that the workers were sent; one that has got fewer goes and takes them. */
  mail: 6,
  /** One word for each worker: it looks at the current record. */
  inside: 64,
  /** One word for each worker: address of its scratch memory. */
  scratch: 128,
} as const;

/** Workers that the control block has room for. */
export const MAX_THREADS = 64;
/** Address of the arena, where records of launches are while they run. */
export const ARENA_ADDRESS = 4096;
/** Bytes of the arena. */
export const ARENA_BYTES = 4 << 20;
/** Where buffers begin. */
export const HEAP_ADDRESS = ARENA_ADDRESS + ARENA_BYTES;

/** A launch that one thread is done with sooner stays on it: to share it takes microseconds, even with those that are awake. */
export const SHARE_FROM_MS = 0.005;
