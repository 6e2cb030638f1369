/**
 * Measures the shapes of prefetches (`along.ts`) on the launches of a run: the fastest shape depends on the row stride,
 * on alignment, and on whether one or several rows are multiplied. Results do not depend on shapes.
 */

import { cpus } from "node:os";
import { ALONG_IN_C, FIRST_SHAPE_IN_C, SHAPES } from "./along.ts";
import type { ObjectCache } from "./objects.ts";

/** Measured launches of each shape. */
export const ROUNDS = 7;

/**
 * Another shape replaces FIRST_SHAPE if its median and its minimum are at most this part of those of it: on a busy
 * machine, medians differ by chance, but a slow shape has no fast launch.
 */
const MAX_TIME = 0.95;

/**
 * The fastest `STEADY` launches of each shape differ by at most this factor, or its times are measured again: other
 * work on the machine spreads them. After `TRIES` measurements, a shape is selected that is not saved, so that the next
 * process measures again.
 */
const MAX_SPREAD = 1.05, STEADY = 3;

/** Measurements of a kind of weights in a process. */
export const TRIES = 2;

/** Timed launches after one that used an unknown shape: the next ones probably use it, too. */
const TIMED = 8;

/** Minimum bytes of measured weights: smaller ones are in caches. */
const MIN_BYTES = 1 << 20;

/** After this many launches with page faults or preemptions, they are measured too. */
const MAX_DISTURBED = 64;

/** Words of a measured shape: words per load, row stride, alignment, and the shapes of one and of several rows. */
export const SHAPE_WORDS = 4;

/** Maximum number of kinds of weights. */
export const MAX_SHAPES = 64;

/** Marks a shape of one or of several rows as not yet measured. */
const UNKNOWN = 255;

/**
 * C text of the runtime: shapes of a pool by kind of weights. The first launches of a kind, all of one kernel, use
 * random shapes. Their times are compared per workgroup of the leader. Whether a launch uses the shape for one or for
 * several rows, or none, is known when it ends. `TIMED` launches after it are timed.
 */
export const SHAPES_IN_C = `${FIRST_SHAPE_IN_C}
enum { UNKNOWN = ${UNKNOWN}, SHAPE_COUNT = ${SHAPES.length}, ROUNDS = ${ROUNDS}, MAX_SHAPES = ${MAX_SHAPES}, TIMED = ${TIMED} };
struct shape { uint32_t words, apart, align, shape; };
struct times { uint32_t kernel, tries, counts[SHAPE_COUNT]; double list[SHAPE_COUNT][ROUNDS]; };
struct shapes {
  uint32_t count, news, seed, disturbed;
  struct shape list[MAX_SHAPES];
  // UNKNOWN for shapes that are not saved.
  uint32_t unsaved[MAX_SHAPES];
  // For one and for several rows.
  struct times times[MAX_SHAPES][2];
  // Timed launches that are left, for one and for several rows.
  uint32_t left[MAX_SHAPES][2];
  // A launch of a kind with unknown shapes: its kind from 1, or 0; whether it is timed; its shape; and disturbances and
  // time of the leader, which waits for other threads after \`end\`.
  struct { uint32_t kind, timed, shape, disturbances; double begin, end; } now;
};

static double thread_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

// Page faults and preemptions.
static uint32_t disturbances(void) {
#ifdef RUSAGE_THREAD
  struct rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) == 0) return usage.ru_minflt + usage.ru_nivcsw;
#endif
  return 0;
}

// Whether times of launches of a kernel are missing. \`used\`: 1 if they use the shape of a kind for one row, 2 for
// several, 3 for both.
static int lacks_times(const struct shapes *s, uint32_t kind, uint32_t kernel, uint32_t used) {
  if (used != 1 && used != 2) return 0;
  uint32_t first = s->times[kind][used - 1].kernel;
  return (s->list[kind].shape >> 8 * (used - 1) & 255) == UNKNOWN && (!first || first == kernel);
}

// Whether the next launch of a kernel is timed.
static uint32_t next_timed(struct shapes *s, uint32_t kind, uint32_t kernel) {
  uint32_t timed = 0;
  for (uint32_t used = 1; used <= 2; used++) {
    if (s->left[kind][used - 1] && lacks_times(s, kind, kernel, used)) s->left[kind][used - 1]--, timed = 1;
  }
  return timed;
}

// The shapes of a launch. May begin a measurement if one is unknown.
static uint32_t shape_of(struct shapes *s, const struct launch *l, const struct along_binding *b) {
  struct shape *x = s->list;
  uint32_t i = 0, align = (uintptr_t)l->bindings[b->binding].address % 64;
  while (i < s->count && (x[i].words != b->words || x[i].apart != b->apart || x[i].align != align)) i++;
  if (i == MAX_SHAPES) return FIRST_SHAPE * 257;
  if (i == s->count) x[s->count++] = (struct shape){ b->words, b->apart, align, UNKNOWN * 257 };
  uint32_t one = x[i].shape & 255, several = x[i].shape >> 8, other = FIRST_SHAPE;
  if (one != UNKNOWN && several != UNKNOWN) return x[i].shape;
  if (!l->experts && 4 * l->bindings[b->binding].length >= ${MIN_BYTES}) {
    s->now.kind = i + 1;
    s->now.timed = next_timed(s, i, l->kernel);
    if (s->now.timed) {
      s->seed = s->seed * 1664525 + 1013904223;
      other = (s->seed >> 16) % SHAPE_COUNT;
      s->now.shape = other, s->now.disturbances = disturbances(), s->now.begin = thread_time();
    }
  }
  return (one == UNKNOWN ? other : one) | (several == UNKNOWN ? other : several) << 8;
}

// Whether times of all shapes are those of a quiet machine.
static int is_steady(const struct times *t) {
  for (int i = 0; i < SHAPE_COUNT; i++) {
    if (t->list[i][${STEADY - 1}] > t->list[i][0] * ${MAX_SPREAD}) return 0;
  }
  return 1;
}

// Adds a time to those of a shape. When all are complete, selects a shape or discards them.
static void add_time(struct shapes *s, uint32_t kind, uint32_t used, uint32_t shape, double time) {
  struct times *t = &s->times[kind][used - 1];
  uint32_t shift = 8 * (used - 1), best = FIRST_SHAPE, at = t->counts[shape];
  if (at == ROUNDS) return;
  // Sorted.
  double *list = t->list[shape];
  for (t->counts[shape]++; at > 0 && list[at - 1] > time; at--) list[at] = list[at - 1];
  list[at] = time;
  for (int i = 0; i < SHAPE_COUNT; i++) if (t->counts[i] < ROUNDS) return;
  int steady = is_steady(t);
  if (!steady && ++t->tries < ${TRIES}) {
    memset(t->counts, 0, sizeof t->counts);
    return;
  }
  for (int i = 0; i < SHAPE_COUNT; i++) {
    if (t->list[i][ROUNDS / 2] < t->list[FIRST_SHAPE][ROUNDS / 2] * ${MAX_TIME} &&
        t->list[i][0] < t->list[best][0] * (best == FIRST_SHAPE ? ${MAX_TIME} : 1)) best = i;
  }
  struct shape *x = &s->list[kind];
  x->shape = (x->shape & ~(UNKNOWN << shift)) | best << shift;
  if (steady) __atomic_store_n(&s->news, 1, __ATOMIC_SEQ_CST);
  else s->unsaved[kind] |= UNKNOWN << shift;
}

// Notes the used shapes of a launch whose leader executed some workgroups, and ends its measurement.
static void end_shape(struct shapes *s, const struct launch *l, uint32_t groups, uint32_t used) {
  uint32_t kind = s->now.kind - 1, timed = s->now.timed;
  s->now.kind = s->now.timed = 0;
  if (groups == 0 || !lacks_times(s, kind, l->kernel, used)) return;
  s->left[kind][used - 1] = TIMED;
  if (!timed) return;
  if (disturbances() != s->now.disturbances && s->disturbed++ < ${MAX_DISTURBED}) return;
  s->times[kind][used - 1].kernel = l->kernel;
  add_time(s, kind, used, s->now.shape, (s->now.end - s->now.begin) / groups);
}
`;

/** Exports of the runtime for shapes. */
export const SHAPE_CALLS_IN_C = `
// Returns whether shapes were measured since the last call.
uint32_t switchyard_shape_news(struct pool *p) { return __atomic_exchange_n(&p->shapes.news, 0, __ATOMIC_SEQ_CST); }

// Copies the shapes that are saved. Returns their number.
uint32_t switchyard_shapes(struct pool *p, struct shape *to) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < p->shapes.count; i++) {
    to[count] = p->shapes.list[i];
    to[count].shape |= p->shapes.unsaved[i];
    if (to[count].shape != UNKNOWN * 257) count++;
  }
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

/** Merges measured shapes into the saved ones. */
export async function saveShapes(
  objects: ObjectCache,
  shapes: Uint32Array,
): Promise<void> {
  const merged = new Map<string, number>();
  for (const from of [shapes, await savedShapes(objects)]) {
    for (let at = 0; at < from.length; at += SHAPE_WORDS) {
      const kind = from.slice(at, at + SHAPE_WORDS - 1).join();
      const shape = from[at + SHAPE_WORDS - 1]!;
      merged.set(kind, firstKnown(merged.get(kind) ?? shape, shape));
    }
  }
  const all = [...merged].slice(0, MAX_SHAPES);
  await objects.putNote(noteOf(objects), Buffer.from(all.join()));
}

/** The shapes of one and of several rows, each the first if it is known. */
function firstKnown(first: number, second: number): number {
  const knownAt = (shift: number) => {
    const shape = first >> shift & 255;
    return (shape === UNKNOWN ? second >> shift & 255 : shape) << shift;
  };
  return knownAt(0) | knownAt(8);
}

/** Key of saved shapes: the processor, since others may have the same instructions, and the prefetches. */
function noteOf({ compiler }: ObjectCache): string {
  return `${cpus()[0]?.model} ${compiler.lanes} ${ALONG_IN_C}`;
}
