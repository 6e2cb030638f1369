/**
 * Measures the shapes of prefetches (`along.ts`) on the weights of a run: the fastest shape depends on the row stride, on
 * alignment, and on whether one or several rows are multiplied. Results do not depend on shapes.
 */

import { cpus } from "node:os";
import { tileWidths } from "../vector/loops.ts";
import { BLOCKS, SHAPES } from "./along.ts";
import type { ObjectCache } from "./objects.ts";
import { vectorsInC } from "./vectors.ts";

/** Bytes of weights that one measurement reads, and measurements of each shape. */
const PART = 1 << 20, ROUNDS = 8;

/** Bytes that all measurements of a kind of weights read. Each reads a different part, which is not in caches. */
const MEASURED = 2 * ROUNDS * SHAPES.length * PART;

/** Another shape replaces the first if it takes at most this part of its time. */
const MAX_TIME = 0.9;

/** After this many launches of a kind of weights, an attempt counts even if it is not confirmed. */
const LAST_ATTEMPT = 256;

/** Words of a measured shape: words per load, row stride, alignment, and the shapes of one and of several rows. */
export const SHAPE_WORDS = 4;

/** Maximum number of kinds of weights. */
export const MAX_SHAPES = 64;

/** Bits of `switchyard_shape_news`: a probe is needed; shapes were measured. */
export const NEWS = { probe: 1, shapes: 2 } as const;

/** Rows of the left operand in a measurement of several rows, and elements per row: more than an L1 cache has. */
const SEVERAL = 8, LEFT = 2048;

/**
 * C text of the runtime: shapes of a pool by kind of weights. A kind is measured before one of its launches, if its pages
 * are in memory.
 */
export const SHAPES_IN_C = `
enum { UNKNOWN = ~0u, SHAPE_COUNT = ${SHAPES.length}, ROUNDS = ${ROUNDS}, MAX_SHAPES = ${MAX_SHAPES} };
struct shape { uint32_t words, apart, align, shape; };
struct shapes {
  kernel_function *probe;
  uint32_t count, news;
  struct shape list[MAX_SHAPES];
  uint32_t launches[MAX_SHAPES];
};

static double thread_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

// Whether bytes are in memory. Then touches their pages.
static int in_memory(const char *from, uint64_t bytes) {
  uint64_t page = sysconf(_SC_PAGESIZE), first = (uintptr_t)from / page * page, count = ((uintptr_t)from + bytes - first + page - 1) / page;
  unsigned char *present = malloc(count);
  int all = present && mincore((void *)first, count * page, (void *)present) == 0;
  for (uint64_t i = 0; all && i < count; i++) all = present[i] & 1;
  free(present);
  for (uint64_t at = 0; all && at < bytes; at += page) *(const volatile char *)(from + at);
  return all;
}

// Measures all shapes. An attempt counts if both halves of its rounds confirm the result, or if it is the last.
static void measure_shape(struct shapes *s, struct shape *x, char *from, int last) {
  struct { struct launch head; struct { char *address; uint64_t length; } binding; } l = { 0 };
  static const uint32_t rows[2] = { 1, ${SEVERAL} };
  // The least times of both halves: other work on the machine only adds time.
  double least[2][2][SHAPE_COUNT];
  uint32_t stop = 0, shape = 0;
  l.head.x = x->apart, l.head.y = x->words;
  for (int round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < 2 * SHAPE_COUNT; i++, from += ${PART}) {
      l.binding.address = from, l.binding.length = ${PART / 4};
      l.head.groups = rows[i / SHAPE_COUNT], l.head.shape = i % SHAPE_COUNT;
      // The first rows, which no shape prefetches.
      for (uint64_t at = 0; at < 16 * (uint64_t)x->apart; at += 64) *(const volatile char *)(from + at);
      double begin = thread_time();
      s->probe(&l.head, 0, 1, 0, &stop);
      double time = thread_time() - begin, *to = &least[i / SHAPE_COUNT][round % 2][i % SHAPE_COUNT];
      if (round < 2 || time < *to) *to = time;
    }
  }
  for (int k = 0; k < 2; k++) {
    double *a = least[k][0], *b = least[k][1], all[SHAPE_COUNT];
    uint32_t best = 0, confirmed = 1;
    for (int i = 0; i < SHAPE_COUNT; i++) {
      all[i] = a[i] < b[i] ? a[i] : b[i];
      if (all[i] < all[best] * (best ? 1 : ${MAX_TIME})) best = i;
    }
    for (int i = 0; i < SHAPE_COUNT; i++) {
      confirmed &= a[best] * ${MAX_TIME} <= a[i] && b[best] * ${MAX_TIME} <= b[i];
    }
    if (!confirmed && !last) return;
    shape |= best << 8 * k;
  }
  x->shape = shape;
  __atomic_fetch_or(&s->news, ${NEWS.shapes}, __ATOMIC_SEQ_CST);
}

// The shape of a launch.
static uint32_t shape_of(struct shapes *s, const struct launch *l, const struct along_binding *b) {
  char *from = (char *)l->bindings[b->binding].address;
  struct shape *x = s->list;
  uint32_t i = 0, align = (uintptr_t)from % 64;
  while (i < s->count && (x[i].words != b->words || x[i].apart != b->apart || x[i].align != align)) i++;
  if (i == MAX_SHAPES) return 0;
  if (i == s->count) x[s->count++] = (struct shape){ b->words, b->apart, align, UNKNOWN };
  if (x[i].shape != UNKNOWN) return x[i].shape;
  if (l->experts || 4 * l->bindings[b->binding].length < ${MEASURED} || b->apart > ${
  PART / 64
}) return 0;
  if (!s->probe) {
    __atomic_fetch_or(&s->news, ${NEWS.probe}, __ATOMIC_SEQ_CST);
    return 0;
  }
  // The attempts are at launches 0, 1, 2, 4, 8 and so on: pages may be missing, or times vary.
  uint32_t launches = s->launches[i]++;
  if (launches & (launches - 1) || !in_memory(from, ${MEASURED})) return 0;
  measure_shape(s, &x[i], from, launches >= ${LAST_ATTEMPT});
  return x[i].shape == UNKNOWN ? 0 : x[i].shape;
}
`;

/** Exports of the runtime for shapes. */
export const SHAPE_CALLS_IN_C = `
// Returns the bits of news, and clears them.
uint32_t switchyard_shape_news(struct pool *p) { return __atomic_exchange_n(&p->shapes.news, 0, __ATOMIC_SEQ_CST); }

// Loads the probe. Returns 1 on failure.
int32_t switchyard_shape_probe(struct pool *p, const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  kernel_function *probe = library ? (kernel_function *)dlsym(library, "probe") : 0;
  __atomic_store_n(&p->shapes.probe, probe, __ATOMIC_SEQ_CST);
  return !probe;
}

// Copies measured shapes. Returns their number.
uint32_t switchyard_shapes(struct pool *p, struct shape *to) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < p->shapes.count; i++) if (p->shapes.list[i].shape != UNKNOWN) to[count++] = p->shapes.list[i];
  return count;
}

// Sets shapes that were measured earlier, before any launch.
void switchyard_set_shapes(struct pool *p, const struct shape *from, uint32_t count) {
  memcpy(p->shapes.list, from, count * sizeof *from);
  p->shapes.count = count;
}
`;

/** Shapes that earlier processes measured on this processor. Empty if there are none. */
export async function savedShapes(objects: ObjectCache): Promise<Uint32Array> {
  const bytes = await objects.note(noteOf(objects)) ?? Buffer.of();
  const words = JSON.parse(`[${bytes.toString()}]`) as number[];
  return Uint32Array.from(words);
}

/** Saves measured shapes for later processes. */
export async function saveShapes(
  objects: ObjectCache,
  shapes: Uint32Array,
): Promise<void> {
  await objects.putNote(noteOf(objects), Buffer.from(shapes.join()));
}

/** Key of saved shapes: the processor, since others may have the same instructions, and the probe. */
function noteOf({ compiler }: ObjectCache): string {
  return `${cpus()[0]?.model} ${probeInC(compiler.lanes)}`;
}

/**
 * C text of the probe, a kernel that reads weights as a matmul of some rows does: products and sums of both halves of
 * each word, and of blocks a scale, lane by lane. Exponents are changed to those of numbers whose products and sums are
 * normal: others take longer.
 */
export function probeInC(lanes: number): string {
  const kinds = tileWidths(lanes).flatMap((words) =>
    [0, BLOCKS].map((blocks) => ({ words, blocks, kind: words + blocks }))
  );
  const loops = kinds.map(({ words, blocks, kind }) => `
static void probe${kind}(const word *from, uint64_t bytes, uint64_t apart, u rows, struct along *along, volatile float *to) {
  vf sums[${SEVERAL}] = { 0 };
  for (uint64_t tile = 0; tile + LANES * apart <= bytes; tile += LANES * apart) {
    for (uint64_t at = 0; at + ${4 * words} <= apart; at += ${4 * words}) {
      vu t[${words}];
      turn${words}(t, from, tile + at, apart, ${4 * words}, 0, along);
      ${blocks ? "t[0] ^= scales(ON(from, tile + at), apart);" : ""}
      const float *x = LEFT[0] + at / 2 % ${LEFT - 2 * words};
      if (rows == 1) { ADD(1, ${words}) } else { ADD(${SEVERAL}, ${words}) }
    }
  }
  for (u r = 0; r < ${SEVERAL}; r++) *to = sums[r][0];
}`);
  return `${vectorsInC({ lanes, fused: false, bytes: false })}
static float LEFT[${SEVERAL}][${LEFT}];
INLINE vu scales(const word *from, uint64_t apart) {
  vu r;
  for (int l = 0; l < LANES; l++) r[l] = *(const bytes *)ON(from, l * apart);
  return r;
}
#define ADD(rows, words) \\
  UNROLL(words) for (u i = 0; i < words; i++) { \\
    vu word = (t[i] & 0x1fff1fffu) | 0x30003000u; \\
    vf low = (vf)(word << 16), high = (vf)(word & 0xffff0000u); \\
    UNROLL(rows) for (u r = 0; r < rows; r++) { \\
      sums[r] = low * splatf(x[r * ${LEFT} + 2 * i]) + sums[r]; \\
      sums[r] = high * splatf(x[r * ${LEFT} + 2 * i + 1]) + sums[r]; \\
    } \\
  }
${loops.join("\n")}
void probe(const struct launch *l, uint32_t first, uint32_t end, char *scratch, const volatile uint32_t *stop) {
  struct along along = { SHAPE_OF(l->shape) };
  const word *from = l->bindings[0].address;
  uint64_t bytes = 4 * l->bindings[0].length;
  volatile float to;
  if (LEFT[0][0] == 0) for (u i = 0; i < ${SEVERAL * LEFT}; i++) LEFT[0][i] = 1;
  switch (l->y) {
${
    kinds.map(({ kind }) =>
      `  case ${kind}: probe${kind}(from, bytes, l->x, l->groups, &along, &to); break;`
    ).join("\n")
  }
  }
}
`;
}
