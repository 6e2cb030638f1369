/**
 * C text of the runtime: a pool of threads that runs records of launches, one after another, and memory for buffers.
 */

import { EXPERTS_IN_C } from "./experts.ts";
import { FILES_IN_C } from "./files.ts";
import { GROUPS_IN_C } from "./groups.ts";
import { LAUNCH_STRUCT } from "./records.ts";
import { SHAPE_CALLS_IN_C, SHAPES_IN_C } from "./shapes.ts";
import { GUARD_BYTES } from "./vectors.ts";

/** Number of the copy kernel. */
export const COPY = 0;
/** Number of the kernel that writes the bytes after its record. */
export const WRITE = 1;
/** Bytes that one workgroup of a copy moves. */
export const COPY_BLOCK = 1 << 18;

/** Nanoseconds that one thread needs for a launch before other threads are awake: shorter launches are not shared. */
export const SHARE_FROM_NS = 4000;
/** Spins of a waiting thread before it sleeps: some tens of microseconds. */
const SPINS = 4000;
/** `end` of the last or only part of a kernel. */
export const NO_END = 2 ** 32 - 1;
/** Bytes from which a buffer has separate pages. */
const PAGES_FROM = 1 << 20;

/**
 * The caller's thread leads: it executes the records, short launches alone and others shared by a counter of
 * workgroups. A thread increments `inside` before it reads the shared launch (`current`). The leader clears the launch
 * before it waits for all threads to leave, so no thread reads a launch that has ended.
 */
export const THREADS_IN_C = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
${LAUNCH_STRUCT}
${SHAPES_IN_C}
static const uint32_t NO_END = ${NO_END};
// The next kernel executes the workgroups along y from \`end\` on.
struct kernel { kernel_function *run; double cost; struct traits traits; uint32_t end; };
struct pool {
  uint32_t threads;
  pthread_t *ids;
  char **scratch;
  uint64_t scratch_bytes;
  struct kernel *kernels;
  uint32_t kernel_count;
  uint32_t stop;
  uint64_t position;
  _Atomic(const struct launch *) current;
  const struct kernel *kernel;
  uint32_t groups, chunk, taken;
  struct streams *streams;
  struct shapes shapes;
  atomic_uint next, inside, signal, sleepers, in_batch, closing;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
};
struct start { struct pool *pool; uint32_t index; };

// Set if a page of a mapped file is lost: nothing runs any more.
static _Atomic(char *) lost;

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void copy_bytes(const struct launch *l, uint32_t first, uint32_t end, char *scratch, const volatile uint32_t *stop) {
  uint64_t bytes = l->bindings[0].length, from = (uint64_t)first * ${COPY_BLOCK}, to = (uint64_t)end * ${COPY_BLOCK};
  if (to > bytes) to = bytes;
  memmove((char *)l->bindings[0].address + from, (char *)l->bindings[1].address + from, to - from);
}

static void write_bytes(const struct launch *l, uint32_t first, uint32_t end, char *scratch, const volatile uint32_t *stop) {
  memcpy(l->bindings[0].address, &l->bindings[1], l->bindings[0].length);
}

// Runs workgroups of a launch, those of each part of its kernel together.
static void run_groups(struct pool *p, const struct launch *l, const struct kernel *kernel, uint32_t first, uint32_t end, char *scratch) {
  for (uint32_t to = end; first < end; first = to) {
    const struct kernel *part = kernel;
    if (kernel->end != NO_END) {
      const uint32_t y = first % l->y;
      while (part->end <= y) part++;
      to = first - y + (part->end < l->y ? part->end : l->y);
      if (to > end) to = end;
    }
    part->run(l, first, to, scratch, &p->stop);
  }
}

// Takes workgroups of the shared launch until none is left. Returns their number. Takes a fraction of the remaining
// ones each time, at least a chunk: long ranges of memory at first, and threads that finish nearly at the same time
// (guided self-scheduling).
static uint32_t take(struct pool *p, const struct launch *l, uint32_t index) {
  uint32_t taken = 0;
  for (;;) {
    uint32_t first = atomic_load(&p->next), end;
    do {
      if (first >= p->groups) return taken;
      uint32_t left = p->groups - first, part = left / (p->threads * 2);
      end = first + (part > p->chunk ? part : p->chunk < left ? p->chunk : left);
    } while (!atomic_compare_exchange_weak(&p->next, &first, end));
    run_groups(p, l, p->kernel, first, end, p->scratch[index]);
    taken += end - first;
  }
}

static void *help(void *argument) {
  struct start start = *(struct start *)argument;
  free(argument);
  struct pool *p = start.pool;
  uint32_t seen = 0;
  for (;;) {
    for (uint32_t spins = 0; atomic_load(&p->signal) == seen;) {
      pause_briefly();
      if (++spins < ${SPINS}) continue;
      if (atomic_load(&p->in_batch) && spins < 8 * ${SPINS}) continue;
      pthread_mutex_lock(&p->mutex);
      atomic_fetch_add(&p->sleepers, 1);
      while (atomic_load(&p->signal) == seen) pthread_cond_wait(&p->wake, &p->mutex);
      atomic_fetch_sub(&p->sleepers, 1);
      pthread_mutex_unlock(&p->mutex);
    }
    seen = atomic_load(&p->signal);
    if (atomic_load(&p->closing)) return 0;
    atomic_fetch_add(&p->inside, 1);
    const struct launch *l = atomic_load(&p->current);
    if (l) take(p, l, start.index);
    atomic_fetch_sub(&p->inside, 1);
  }
}

static void wake_all(struct pool *p) {
  atomic_fetch_add(&p->signal, 1);
  if (atomic_load(&p->sleepers) == 0) return;
  pthread_mutex_lock(&p->mutex);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->mutex);
}

// The leader has executed workgroups of a launch.
static void leader_ended(struct pool *p, uint32_t groups) {
  p->taken = groups;
  if (p->shapes.now.timed) p->shapes.now.end = thread_time();
}

static void share(struct pool *p, const struct launch *l, struct kernel *kernel, uint32_t groups) {
  uint32_t chunk = groups / (p->threads * 32);
  uint32_t min = kernel->cost > 0 ? ${SHARE_FROM_NS} / kernel->cost : 1;
  uint32_t max = (groups + p->threads - 1) / p->threads;
  if (chunk < min) chunk = min;
  if (chunk > max) chunk = max;
  p->chunk = chunk ? chunk : 1;
  p->groups = groups;
  p->kernel = kernel;
  atomic_store(&p->next, 0);
  atomic_store(&p->current, l);
  wake_all(p);
  uint64_t begin = now();
  uint32_t taken = take(p, l, 0);
  leader_ended(p, taken);
  double each = taken ? (double)(now() - begin) / taken : kernel->cost;
  atomic_store(&p->current, NULL);
  for (uint32_t spins = 0; atomic_load(&p->inside);) {
    if (++spins < ${SPINS}) pause_briefly();
    else sched_yield();
  }
  kernel->cost = kernel->cost < 0 ? each : 0.5 * (kernel->cost + each);
}

// The first workgroups of a launch. Those after the listed tiles have no work.
static uint32_t groups_of(const struct launch *l, const struct kernel *kernel) {
  if (!kernel->traits.tiles || !l->bindings[kernel->traits.tiles - 1].length) return l->groups;
  uint64_t listed = (uint64_t)*l->bindings[kernel->traits.tiles - 1].address * l->y;
  return listed < l->groups ? listed : l->groups;
}

// Runs these first workgroups of a launch, alone or shared. Returns its end time.
static uint64_t run_launch(struct pool *p, struct launch *l, struct kernel *kernel, uint32_t groups, uint64_t begin) {
  if (p->threads == 1 || groups <= 1 || (kernel->cost >= 0 && kernel->cost * groups < ${SHARE_FROM_NS})) {
    run_groups(p, l, kernel, 0, groups, p->scratch[0]);
    leader_ended(p, groups);
    uint64_t end = now();
    double each = groups ? (double)(end - begin) / groups : kernel->cost;
    kernel->cost = kernel->cost < 0 ? each : 0.5 * (kernel->cost + each);
    return end;
  }
  share(p, l, kernel, groups);
  return now();
}

static void run_experts(struct pool *p, struct launch *l, struct kernel *kernel);
static int may_wait(const struct pool *p, const struct launch *l);
static void close_streams(struct streams *s);

struct pool *switchyard_open(uint32_t threads) {
  struct pool *p = calloc(1, sizeof *p);
  if (!p) return 0;
  p->ids = calloc(threads, sizeof *p->ids);
  p->scratch = calloc(threads, sizeof *p->scratch);
  p->kernels = calloc(2, sizeof *p->kernels);
  if (!p->ids || !p->scratch || !p->kernels) return 0;
  p->kernels[${COPY}] = (struct kernel){ copy_bytes, -1, .end = NO_END };
  p->kernels[${WRITE}] = (struct kernel){ write_bytes, -1, .end = NO_END };
  p->kernel_count = 2;
  pthread_mutex_init(&p->mutex, 0);
  pthread_cond_init(&p->wake, 0);
  p->threads = 1;
  for (uint32_t index = 1; index < threads; index++) {
    struct start *start = malloc(sizeof *start);
    if (!start) break;
    *start = (struct start){ p, index };
    if (pthread_create(&p->ids[index], 0, help, start)) { free(start); break; }
    p->threads++;
  }
  return p;
}

// The word before scratch memory receives the used shapes.
static uint32_t *used_shapes(char *scratch) { return (uint32_t *)scratch - 1; }
static void free_scratch(char *scratch) { if (scratch) free(scratch - ${GUARD_BYTES}); }

void switchyard_close(struct pool *p) {
  atomic_store(&p->closing, 1);
  wake_all(p);
  for (uint32_t index = 1; index < p->threads; index++) pthread_join(p->ids[index], 0);
  close_streams(p->streams);
  for (uint32_t index = 0; index < p->threads; index++) free_scratch(p->scratch[index]);
  free(p->ids);
  free(p->scratch);
  free(p->kernels);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->mutex);
  free(p);
}

// Loads a compiled kernel with this much scratch memory, or a part of one. Returns its number, or -1.
int32_t switchyard_load(struct pool *p, const char *path, const char *name, uint64_t scratch_bytes, uint32_t end) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  kernel_function *run = library ? (kernel_function *)dlsym(library, name) : 0;
  if (!run) return -1;
  if (scratch_bytes > p->scratch_bytes || !p->scratch[0]) {
    for (uint32_t index = 0; index < p->threads; index++) {
      void *larger;
      if (posix_memalign(&larger, ${GUARD_BYTES}, ${GUARD_BYTES} + scratch_bytes)) return -1;
      memset(larger, 0, ${GUARD_BYTES} + scratch_bytes);
      free_scratch(p->scratch[index]);
      p->scratch[index] = (char *)larger + ${GUARD_BYTES};
    }
    p->scratch_bytes = scratch_bytes;
  }
  struct kernel *kernels = realloc(p->kernels, (p->kernel_count + 1) * sizeof *kernels);
  if (!kernels) return -1;
  p->kernels = kernels;
  // An empty record with more bindings than any kernel.
  static const uint64_t empty[1 << 10];
  struct traits traits = { 0 };
  uint32_t stop = 0;
  run((const struct launch *)empty, 0, 0, (char *)&traits, &stop);
  kernels[p->kernel_count] = (struct kernel){ run, -1, traits, end };
  return p->kernel_count++;
}

// Runs records from word \`from\` to word \`to\`. With a budget in nanoseconds, stops before a launch that may exceed
// it. Returns the reached word.
uint64_t switchyard_run(struct pool *p, uint32_t *words, uint64_t from, uint64_t to, double budget) {
  uint64_t begin = now(), last = begin;
  atomic_store(&p->in_batch, 1);
  for (; from < to && !p->stop && !atomic_load(&lost); from += words[from]) {
    struct launch *l = (struct launch *)(words + from);
    struct kernel *kernel = &p->kernels[l->kernel];
    uint32_t groups = groups_of(l, kernel), sharers = groups < p->threads ? groups : p->threads;
    double predicted = groups ? kernel->cost * groups / sharers : 0;
    if (budget > 0 && (may_wait(p, l) || kernel->cost < 0 || last - begin + predicted > budget)) break;
    p->position = from;
    l->start = last;
    if (kernel->traits.along.words) l->shape = shape_of(&p->shapes, l, &kernel->traits.along);
    if (p->shapes.now.kind) *used_shapes(p->scratch[0]) = 0;
    if (l->experts) run_experts(p, l, kernel), last = now();
    else last = run_launch(p, l, kernel, groups, last);
    if (p->shapes.now.kind) end_shape(&p->shapes, l, p->taken, *used_shapes(p->scratch[0]));
    l->end = last;
  }
  atomic_store(&p->in_batch, 0);
  return from;
}

void switchyard_stop(struct pool *p) { __atomic_store_n(&p->stop, 1, __ATOMIC_SEQ_CST); }
uint64_t switchyard_position(struct pool *p) { return __atomic_load_n(&p->position, __ATOMIC_SEQ_CST); }

// Zeroed memory with guards on both sides, or 0.
char *switchyard_allocate(uint64_t bytes) {
  uint64_t size = bytes + 2 * ${GUARD_BYTES};
  void *start;
  if (size >= ${PAGES_FROM}) {
    start = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return 0;
#ifdef MADV_HUGEPAGE
    madvise(start, size, MADV_HUGEPAGE);
#endif
  } else {
    if (posix_memalign(&start, ${GUARD_BYTES}, size)) return 0;
    memset(start, 0, size);
  }
  return (char *)start + ${GUARD_BYTES};
}

void switchyard_free(char *address, uint64_t bytes) {
  uint64_t size = bytes + 2 * ${GUARD_BYTES};
  if (size >= ${PAGES_FROM}) munmap(address - ${GUARD_BYTES}, size);
  else free(address - ${GUARD_BYTES});
}
${SHAPE_CALLS_IN_C}${FILES_IN_C}${EXPERTS_IN_C}${GROUPS_IN_C}`;
