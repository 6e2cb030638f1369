/** A launch as words that JavaScript writes and C reads. */

/**
 * Words of a record. They are followed by four words per binding: its address and its length in elements, both of 64
 * bits.
 */
export const RECORD = {
  /** Words of the record, including bindings. */
  words: 0,
  kernel: 1,
  groups: 2,
  x: 3,
  y: 4,
  /** The group of its streamed weights, from 1; 0: none. */
  experts: 5,
  /** The binding with its list of tiles, if weights are streamed. */
  tiles: 6,
  /** Start and end, in nanoseconds of the pool's clock: two words each. */
  start: 8,
  end: 10,
} as const;

/** Words of a record before its bindings. */
export const RECORD_WORDS = 12;
/** Words of a binding. */
export const BINDING_WORDS = 4;

/**
 * The record in C, and the signature of compiled kernels: workgroups `first` to `end` of a launch. Before a launch, the
 * runtime sets `shape`: its low byte is the shape of prefetches in loops over one row, the next byte that in loops over
 * several rows. A kernel writes its `traits` to scratch memory if it is called with an empty record. If it prefetches
 * rows: their binding, their stride in bytes, and the words of a load, plus `BLOCKS` and `ARRAYS`. If it has a list of
 * tiles: its binding, from 1. After other calls, the word before scratch memory contains the used shapes: bit 0 for one
 * row, bit 1 for several.
 */
export const LAUNCH_STRUCT = `
struct launch {
  uint32_t words, kernel, groups, x, y, experts, tiles, shape;
  uint64_t start, end;
  struct { uint32_t *address; uint64_t length; } bindings[];
};
struct along_binding { uint32_t binding, apart, words; };
struct traits { struct along_binding along; uint32_t tiles; };
typedef void kernel_function(const struct launch *, uint32_t first, uint32_t end, char *scratch, const volatile uint32_t *stop);
`;
