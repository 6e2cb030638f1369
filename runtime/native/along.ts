/** Prefetches beside transposed loads of rows. */

import { LINE } from "../vector/prefetch.ts";

/**
 * Added to the words of a load in `along_binding`: if rows are blocks with scales, if several arrays are read, and if
 * one row of the other operand reads them as streams.
 */
export const BLOCKS = 64, ARRAYS = 128, STREAM = 256;

/**
 * Shapes of prefetches. `ahead`: bytes from a load to its prefetch in the same rows; 0: the following rows are
 * prefetched line after line, as one stream. `near`: into the first-level cache, where rows whose distance is a power
 * of two share a set and may evict each other. `stream`: bytes from a load to its prefetch if the loads of all lanes
 * are one stream; 0: the loaded lines themselves. `far`: streams are prefetched into the second-level cache.
 */
export const SHAPES = [
  { ahead: 1024, near: 0, stream: 8192, far: 0 },
  { ahead: 512, near: 1, stream: 0, far: 0 },
  { ahead: 2048, near: 0, stream: 16384, far: 0 },
  { ahead: 0, near: 1, stream: 4096, far: 0 },
  { ahead: 1024, near: 1, stream: 2048, far: 0 },
  { ahead: 4096, near: 0, stream: 8192, far: 1 },
] as const;

/**
 * C text of the runtime: FIRST_SHAPE, the index of the shape that is used unless another is measured to be faster.
 * Steps of a bf16 checkpoint on Zen 4 with 16 lanes take 0.8 of the time with that into the second-level cache.
 */
export const FIRST_SHAPE_IN_C = `
#if defined __AVX512F__ && defined __znver4__
enum { FIRST_SHAPE = ${SHAPES.findIndex(({ far }) => far === 1)} };
#else
enum { FIRST_SHAPE = 0 };
#endif
`;

/**
 * Prefetches a line of each lane's row next to a transposed load. Past the end of the rows it continues with the
 * following rows or, if two arrays alternate, with the next rows of the other array. `SHAPE_OF` selects a shape by its
 * index.
 *
 * Loads that are one stream have a run in each array. `stream_line` returns the line for the first lane. If two arrays
 * alternate, prefetches of blocks with scales past the end of a run, which is as long as the last one, continue the
 * last run of the other array. Runs of other loads are so long that continuing them costs less: their next run is then
 * in the second-level cache.
 */
export const ALONG_IN_C = `
struct along { const char *array, *next, *other, *start; uint64_t run; u ahead, near, stream, far; };
static const struct { u ahead, near, stream, far; } SHAPES[] = { ${
  SHAPES.map(({ ahead, near, stream, far }) =>
    `{ ${ahead}, ${near}, ${stream}, ${far} }`
  ).join(", ")
} };
#define SHAPE_OF(i) .ahead = SHAPES[i].ahead, .near = SHAPES[i].near, .stream = SHAPES[i].stream, .far = SHAPES[i].far
INLINE const char *stream_line(const char *array, const char *from, uint64_t at, uint64_t apart, struct along *s) {
  const char *line = from + s->stream;
  if (apart % ${LINE} == 0) {
    s->array = array;
    return line;
  }
  if (s->array != array) {
    if (s->array) s->other = s->next, s->run = s->next - s->start;
    s->array = array;
    s->start = from - at;
  }
  s->next = from - at + LANES * apart;
  return s->other && line - s->start >= s->run ? s->other + (line - s->start - s->run) : line;
}
INLINE void prefetch_along(const char *array, const char *from, uint64_t at, uint64_t apart, uint64_t step, struct along *s) {
  const char *next = from - at + LANES * apart;
  if (at < step && s->next != next) s->other = s->array == array ? 0 : s->next, s->array = array, s->next = next;
  if (at % ${LINE} >= step) return;
  const char *after = s->other ? s->other : next, *line = from + s->ahead;
  uint64_t ahead = at + s->ahead, lines = apart;
  if (!s->ahead) line = after + at / ${LINE} * ${LINE} * LANES, lines = ${LINE};
  else if (ahead >= apart) line = after + ahead - apart;
  if (s->near) {
    UNROLL(LANES)
    for (u i = 0; i < LANES; i++) __builtin_prefetch(line + i * lines, 0, 3);
  } else {
    UNROLL(LANES)
    for (u i = 0; i < LANES; i++) __builtin_prefetch(line + i * lines, 0, 2);
  }
}
`;
