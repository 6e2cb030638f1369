/** C text of a cache of experts, for weights that exceed their memory limit. */

import { HALF_LIFE } from "../weights/expert_cache.ts";

/** Bytes of the buffer for direct reads into memory that is not page-aligned with the file. */
const BOUNCE_BYTES = 1 << 20;
/** Number of reader threads. */
const READERS = 8;
/** Bytes that one reader reads at a time: few experts, too, use all readers. */
const CHUNK_BYTES = 1 << 20;
/** Bytes of a large page. */
const LARGE_PAGE = 1 << 21;
/** Bytes of addresses that are reserved for new large pages at once. */
const FRESH_BYTES = 1 << 30;

/**
 * A streamed weight reserves addresses for all of its experts and memory only for those that were read. A group is the
 * streamed weights of one launch. Before the launch, the leader requests the experts in its list of tiles; readers load
 * them, by direct reads if the file system allows. Tiles of resident experts run first: the list is shortened for each
 * round and restored after the last. Least frequently used experts are evicted; older uses count less. Their pages move
 * to the addresses of the requested expert: fresh pages would be zeroed before each read. New pages are parts of large
 * pages, whose memory is contiguous: direct reads into scattered pages reach a third of the rate.
 */
export const EXPERTS_IN_C = `
enum { ABSENT, READING, RESIDENT };
enum { READERS = ${READERS}, HALF_LIFE = ${HALF_LIFE} };
struct place { char *address; uint64_t bytes, offset; int direct, buffered; };
struct expert { uint32_t state, wanted, fresh, left; uint64_t last; double uses, rank; };
// \`weights\` are streamed, the following \`mapped\` ones are in several mappings. Experts with equal \`bases\` are a part.
struct expert_group {
  uint32_t number, weights, mapped, experts, parts, next;
  uint32_t *ids, *part;
  char **bases;
  struct place **places;
  struct expert *list;
  uint64_t launches;
};
// \`bases\` of a mapped weight: for each expert, the address at which the first expert would be in its mapping.
struct weight { uint32_t experts; struct place *places; char **bases, *room, *start; uint64_t room_bytes; };
struct pages { char *start; uint64_t bytes; };
struct read_file { dev_t device; ino_t node; int direct, buffered; };
struct job { uint32_t group, expert, taken, chunks; };
struct streams {
  pthread_mutex_t mutex;
  pthread_cond_t more, done;
  pthread_t readers[READERS];
  uint32_t reader_count, weight_count, group_count, file_count, closing, failed;
  struct weight *weights;
  struct read_file *files;
  struct expert_group **groups;
  struct pages *spare, fresh;
  uint64_t spares, spare_bytes, places;
  struct job *queue;
  uint64_t head, tail, room;
  uint64_t limit, used, bytes_read, hits, misses, waited, reading, jobs, began;
};

static int read_all(int file, char *to, uint64_t bytes, uint64_t from, struct streams *s) {
  while (bytes > 0) {
    ssize_t got = pread(file, to, bytes, from);
    if (got <= 0) return 0;
    to += got; from += got; bytes -= got;
    __atomic_fetch_add(&s->bytes_read, got, __ATOMIC_RELAXED);
  }
  return 1;
}

// Reads bytes that are not page-aligned with the file, through a buffer.
static int read_bounced(const struct place *x, char *to, uint64_t bytes, uint64_t from, char *bounce, struct streams *s) {
  uint64_t page = page_bytes();
  if (x->direct < 0) return read_all(x->buffered, to, bytes, from, s);
  while (bytes > 0) {
    uint64_t skip = from % page, want = skip + bytes, size = want > ${BOUNCE_BYTES} ? ${BOUNCE_BYTES} : (want + page - 1) / page * page;
    ssize_t got = pread(x->direct, bounce, size, from - skip);
    if (got <= (ssize_t)skip) return 0;
    uint64_t some = got - skip < bytes ? got - skip : bytes;
    memcpy(to, bounce + skip, some);
    to += some; from += some; bytes -= some;
    __atomic_fetch_add(&s->bytes_read, got, __ATOMIC_RELAXED);
  }
  return 1;
}

static int read_place(const struct place *x, char *bounce, struct streams *s) {
  uint64_t page = page_bytes(), head = -x->offset % page;
  if (x->direct < 0 || x->bytes < head + page || (uintptr_t)x->address % page != x->offset % page) {
    return read_bounced(x, x->address, x->bytes, x->offset, bounce, s);
  }
  uint64_t body = (x->bytes - head) / page * page, end = head + body;
  return read_bounced(x, x->address, head, x->offset, bounce, s) &&
    read_all(x->direct, x->address + head, body, x->offset + head, s) &&
    read_bounced(x, x->address + end, x->bytes - end, x->offset + end, bounce, s);
}

// Number of chunks of a part of a file, which end at its pages.
static uint32_t chunks_of(const struct place *x) {
  uint64_t head = -x->offset % page_bytes();
  return x->bytes <= head + ${CHUNK_BYTES} ? 1 : (x->bytes - head + ${CHUNK_BYTES} - 1) / ${CHUNK_BYTES};
}

static struct place chunk_of(const struct place *x, uint32_t i) {
  uint64_t head = -x->offset % page_bytes(), from = i ? head + (uint64_t)i * ${CHUNK_BYTES} : 0;
  uint64_t end = i + 1 == chunks_of(x) ? x->bytes : head + (uint64_t)(i + 1) * ${CHUNK_BYTES};
  return (struct place){ x->address + from, end - from, x->offset + from, x->direct, x->buffered };
}

static void *read_experts(void *argument) {
  struct streams *s = argument;
  void *bounce;
  if (posix_memalign(&bounce, 1 << 12, ${BOUNCE_BYTES})) return 0;
  pthread_mutex_lock(&s->mutex);
  while (!s->closing) {
    if (s->head == s->tail) { pthread_cond_wait(&s->more, &s->mutex); continue; }
    struct job *first = &s->queue[s->head % s->room], job = *first;
    if (++first->taken == job.chunks) s->head++;
    struct expert_group *g = s->groups[job.group];
    pthread_mutex_unlock(&s->mutex);
    uint32_t w = 0, i = job.taken, count;
    while (i >= (count = chunks_of(&g->places[w][job.expert]))) i -= count, w++;
    struct place chunk = chunk_of(&g->places[w][job.expert], i);
    int good = read_place(&chunk, bounce, s);
    pthread_mutex_lock(&s->mutex);
    if (!good) s->failed = job.group + 1;
    if (--g->list[job.expert].left > 0) continue;
    g->list[job.expert].state = RESIDENT;
    if (--s->jobs == 0) s->reading += now() - s->began;
    pthread_cond_broadcast(&s->done);
  }
  pthread_mutex_unlock(&s->mutex);
  free(bounce);
  return 0;
}

static uint64_t bytes_of(const struct expert_group *g, uint32_t e) {
  uint64_t bytes = 0;
  for (uint32_t w = 0; w < g->weights; w++) bytes += g->places[w][e].bytes;
  return bytes;
}

// The pages that no other expert shares.
static struct pages pages_in(const struct place *x) {
  uint64_t page = page_bytes();
  char *first = x->address + -(uintptr_t)x->address % page, *end = x->address + x->bytes;
  end -= (uintptr_t)end % page;
  return (struct pages){ first, end > first ? end - first : 0 };
}

// Frees pages of evicted experts until no more than this many bytes of them remain.
static void free_spares(struct streams *s, uint64_t left) {
  while (s->spare_bytes > left) {
    struct pages x = s->spare[--s->spares];
    madvise(x.start, x.bytes, MADV_DONTNEED);
    s->spare_bytes -= x.bytes;
  }
}

// Evicts an expert. Its pages are spare.
static void evict(struct streams *s, struct expert_group *g, uint32_t e) {
  for (uint32_t w = 0; w < g->weights; w++) {
    struct pages own = pages_in(&g->places[w][e]);
    if (own.bytes == 0) continue;
    s->spare[s->spares++] = own;
    s->spare_bytes += own.bytes;
  }
  g->list[e].state = ABSENT;
  s->used -= bytes_of(g, e);
}

// The spare pages for addresses, from 1: those at these addresses, or others of equal size; 0: none.
static uint32_t spare_for(const struct streams *s, struct pages to) {
  uint32_t found = 0;
  for (uint32_t i = 0; i < s->spares; i++) {
    if (s->spare[i].start == to.start) return i + 1;
    if (s->spare[i].bytes == to.bytes) found = i + 1;
  }
  return found;
}

// Reserves addresses that start at a large page, in place of the remaining ones. No bytes: there are none.
static struct pages reserve(struct streams *s, uint64_t bytes) {
  if (s->fresh.bytes > 0) munmap(s->fresh.start, s->fresh.bytes);
  s->fresh = (struct pages){ 0 };
  uint64_t size = (bytes > ${FRESH_BYTES} ? bytes : ${FRESH_BYTES}) + ${LARGE_PAGE};
  char *start = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return s->fresh;
  uint64_t skip = -(uintptr_t)start % ${LARGE_PAGE};
  if (skip > 0) munmap(start, skip);
#ifdef MADV_HUGEPAGE
  madvise(start + skip, size - skip, MADV_HUGEPAGE);
#endif
  return (struct pages){ start + skip, size - skip };
}

// Moves pages to addresses. Returns whether they are there.
static int move_pages(struct pages from, struct pages to, int how) {
#ifdef MREMAP_DONTUNMAP
  if (from.start == to.start || mremap(from.start, to.bytes, to.bytes, MREMAP_MAYMOVE | MREMAP_FIXED | how, to.start) != MAP_FAILED) return 1;
  // The system may have removed the addresses before it failed.
  mmap(to.start, to.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
#endif
  return 0;
}

// Moves spare pages to addresses. Returns whether there were any.
static int use_spare(struct streams *s, struct pages to) {
#ifdef MREMAP_DONTUNMAP
  const uint32_t i = spare_for(s, to);
  if (i == 0 || !move_pages(s->spare[i - 1], to, MREMAP_DONTUNMAP)) return 0;
  s->spare[i - 1] = s->spare[--s->spares];
  s->spare_bytes -= to.bytes;
  return 1;
#endif
  return 0;
}

// Moves parts of new large pages to addresses. They are zeroed here, without the mutex.
static void use_fresh(struct streams *s, struct pages to) {
#ifdef MREMAP_DONTUNMAP
  if (to.bytes == 0) return;
  if (s->fresh.bytes < to.bytes) s->fresh = reserve(s, to.bytes);
  if (s->fresh.bytes < to.bytes) return;
  struct pages from = { s->fresh.start, to.bytes };
  s->fresh.start += to.bytes, s->fresh.bytes -= to.bytes;
  pthread_mutex_unlock(&s->mutex);
  for (uint64_t at = 0; at < to.bytes; at += page_bytes()) *(volatile char *)(from.start + at) = 0;
  if (!move_pages(from, to, 0)) munmap(from.start, from.bytes);
  pthread_mutex_lock(&s->mutex);
#endif
}

// Provides pages at the addresses of an expert.
static void provide(struct streams *s, struct expert_group *g, uint32_t e) {
  uint64_t has = 0;
  for (uint32_t w = 0; w < g->weights && w < 64; w++) {
    if (use_spare(s, pages_in(&g->places[w][e]))) has |= 1ull << w;
  }
  free_spares(s, s->limit - s->used);
  for (uint32_t w = 0; w < g->weights && w < 64; w++) {
    if (!(has >> w & 1)) use_fresh(s, pages_in(&g->places[w][e]));
  }
}

// Evicts the least used expert that no launch needs; with force, also one that only a later launch needs.
static int evict_one(struct streams *s, const struct expert_group *current, int force) {
  struct expert_group *of = 0;
  uint32_t at = 0;
  for (uint32_t i = 0; i < s->group_count; i++) {
    struct expert_group *g = s->groups[i];
    for (uint32_t e = 0; e < g->experts; e++) {
      struct expert *x = &g->list[e];
      if (x->state != RESIDENT || (x->wanted && (!force || g == current))) continue;
      if (!of || x->rank < of->list[at].rank) of = g, at = e;
    }
  }
  if (of) evict(s, of, at);
  return of != 0;
}

// Requests an expert; returns 0 if there is no memory. Requires the mutex.
static int request(struct streams *s, struct expert_group *g, uint32_t e, int force) {
  struct expert *x = &g->list[e];
  x->wanted = 1;
  if (x->state != ABSENT) return 1;
  uint64_t bytes = bytes_of(g, e);
  while (s->used + bytes > s->limit) {
    if (!evict_one(s, g, force)) return 0;
  }
  s->used += bytes;
  x->state = READING;
  provide(s, g, e);
  if (s->jobs++ == 0) s->began = now();
  x->left = 0;
  for (uint32_t w = 0; w < g->weights; w++) x->left += chunks_of(&g->places[w][e]);
  s->queue[s->tail++ % s->room] = (struct job){ g->number, e, 0, x->left };
  pthread_cond_broadcast(&s->more);
  return 1;
}

static int run_parts(struct pool *p, struct launch *l, struct kernel *kernel, const struct expert_group *g);

// Runs a launch with streamed weights, in rounds over the resident experts. Requires the mutex.
static void run_streamed(struct pool *p, struct launch *l, struct kernel *kernel, struct expert_group *g) {
  struct streams *s = p->streams;
  struct expert_group *next = g->next ? s->groups[g->next - 1] : 0;
  uint32_t *tiles = l->bindings[l->tiles].address, n = tiles[0], left = n;
  uint64_t bytes = 4 * (3ull * n + 1);
  uint32_t *all = bytes > 4 * l->bindings[l->tiles].length ? 0 : malloc(bytes + n);
  char *done = (char *)all + bytes;
  if (all) memcpy(all, tiles, bytes), memset(done, 0, n);
  else s->failed = 1;
  g->launches++;
  for (uint32_t i = 0; i < n && !s->failed; i++) {
    uint32_t e = all[1 + 3 * i];
    if (e >= g->experts) { s->failed = 1; break; }
    struct expert *x = &g->list[e];
    if (x->last == g->launches) continue;
    x->uses = 1 + x->uses * exp2(-(double)(g->launches - x->last) / HALF_LIFE);
    x->rank = log2(x->uses) + (double)g->launches / HALF_LIFE;
    x->last = g->launches;
    x->wanted = 1;
    // An expert that the previous launch of the list requested was not in memory.
    if (x->state == RESIDENT && !x->fresh) s->hits++; else s->misses++;
    x->fresh = 0;
  }
  while (left > 0 && !p->stop && !s->failed && !atomic_load(&lost)) {
    int fits = 1;
    uint32_t count = 0, reading = 0, last = 0;
    for (uint32_t i = 0; i < n && fits; i++) if (!done[i]) fits = request(s, g, all[1 + 3 * i], 0);
    for (uint32_t i = 0; next && i < n && fits; i++) {
      uint32_t e = all[1 + 3 * i];
      if (e >= next->experts) continue;
      if (next->list[e].state == ABSENT) next->list[e].fresh = 1;
      fits = request(s, next, e, 0);
    }
    for (uint32_t i = 0; i < n; i++) {
      if (done[i]) continue;
      uint32_t e = last = all[1 + 3 * i], state = g->list[e].state;
      if (state == READING) reading++;
      if (state != RESIDENT) continue;
      memcpy(&tiles[1 + 3 * count++], &all[1 + 3 * i], 12);
      done[i] = 1;
    }
    if (count == 0) {
      // Experts that only a later launch needs may occupy the memory.
      if (reading == 0 && request(s, g, last, 1)) continue;
      uint64_t begin = now();
      struct timespec until;
      clock_gettime(CLOCK_REALTIME, &until);
      until.tv_sec++;
      pthread_cond_timedwait(&s->done, &s->mutex, &until);
      s->waited += now() - begin;
      continue;
    }
    pthread_mutex_unlock(&s->mutex);
    tiles[0] = count;
    int good = run_parts(p, l, kernel, g);
    pthread_mutex_lock(&s->mutex);
    if (!good) s->failed = 1;
    for (uint32_t i = 0; i < count; i++) g->list[tiles[1 + 3 * i]].wanted = 0;
    left -= count;
  }
  if (all) memcpy(tiles, all, bytes);
  free(all);
}

static struct streams *streams_of(struct pool *p) {
  if (p->streams) return p->streams;
  struct streams *s = calloc(1, sizeof *s);
  if (!s) return 0;
  pthread_mutex_init(&s->mutex, 0);
  pthread_cond_init(&s->more, 0);
  pthread_cond_init(&s->done, 0);
  s->limit = -1;
  return p->streams = s;
}

static void free_group(struct expert_group *g) {
  if (!g) return;
  free(g->places); free(g->list); free(g->ids); free(g->part); free(g->bases);
  free(g);
}

static void close_streams(struct streams *s) {
  if (!s) return;
  pthread_mutex_lock(&s->mutex);
  s->closing = 1;
  pthread_cond_broadcast(&s->more);
  pthread_mutex_unlock(&s->mutex);
  for (uint32_t i = 0; i < s->reader_count; i++) pthread_join(s->readers[i], 0);
  for (uint32_t i = 0; i < s->file_count; i++) close(s->files[i].direct), close(s->files[i].buffered);
  if (s->fresh.bytes > 0) munmap(s->fresh.start, s->fresh.bytes);
  for (uint32_t i = 0; i < s->group_count; i++) free_group(s->groups[i]);
  for (uint32_t i = 0; i < s->weight_count; i++) free(s->weights[i].bases);
  free(s->files); free(s->groups); free(s->weights); free(s->queue); free(s->spare);
  free(s);
}

// The file of a descriptor, opened for direct and for buffered reads; 0 on failure.
static struct read_file *file_of(struct streams *s, int descriptor) {
  struct stat file;
  if (fstat(descriptor, &file)) return 0;
  for (uint32_t i = 0; i < s->file_count; i++) {
    if (s->files[i].device == file.st_dev && s->files[i].node == file.st_ino) return &s->files[i];
  }
  struct read_file *files = realloc(s->files, (s->file_count + 1) * sizeof *files);
  if (!files) return 0;
  s->files = files;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
  struct read_file *x = &files[s->file_count];
  *x = (struct read_file){ file.st_dev, file.st_ino, -1, open(path, O_RDONLY | O_CLOEXEC) };
  if (x->buffered < 0) return 0;
  void *bytes;
#ifdef O_DIRECT
  x->direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (x->direct >= 0 && !posix_memalign(&bytes, 1 << 12, 1 << 12)) {
    if (pread(x->direct, bytes, 1 << 12, 0) <= 0) close(x->direct), x->direct = -1;
    free(bytes);
  }
#endif
  s->file_count++;
  return x;
}

// A streamed weight of parts of files, one per expert: its number, or -1.
int64_t switchyard_stream(struct pool *p, uint64_t count, const struct part *parts) {
  struct streams *s = streams_of(p);
  while (s && s->reader_count < READERS && !pthread_create(&s->readers[s->reader_count], 0, read_experts, s)) s->reader_count++;
  if (!s || s->reader_count == 0) return -1;
  uint64_t page = page_bytes(), bytes = 2 * page + parts[0].offset % page;
  struct place *places = calloc(count, sizeof *places);
  struct weight *weights = realloc(s->weights, (s->weight_count + 1) * sizeof *weights);
  if (weights) s->weights = weights;
  for (uint64_t e = 0; e < count; e++) bytes += parts[e].bytes;
  char *room = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  int fails = !places || !weights || room == MAP_FAILED;
  char *start = room + page + parts[0].offset % page, *to = start;
  for (uint64_t e = 0; e < count && !fails; to += parts[e++].bytes) {
    struct read_file *file = file_of(s, parts[e].descriptor);
    if (file) places[e] = (struct place){ to, parts[e].bytes, parts[e].offset, file->direct, file->buffered };
    else fails = 1;
  }
  if (fails) {
    free(places);
    if (room != MAP_FAILED) munmap(room, bytes);
    return -1;
  }
  weights[s->weight_count] = (struct weight){ count, places, 0, room, start, bytes };
  return s->weight_count++;
}

char *switchyard_streamed(struct pool *p, uint32_t weight) { return p->streams->weights[weight].start; }

// Forgets a streamed weight and its groups.
void switchyard_unstream(struct pool *p, uint32_t weight) {
  struct streams *s = p->streams;
  struct weight *x = &s->weights[weight];
  pthread_mutex_lock(&s->mutex);
  for (uint32_t i = 0; i < s->group_count; i++) {
    struct expert_group *g = s->groups[i];
    int has = 0;
    for (uint32_t w = 0; w < g->weights; w++) has |= g->ids[w] == weight;
    for (uint32_t e = 0; has && e < g->experts; e++) {
      while (g->list[e].state == READING) pthread_cond_wait(&s->done, &s->mutex);
      if (g->list[e].state != ABSENT) evict(s, g, e);
    }
    if (has) g->experts = 0;
  }
  free_spares(s, 0);
  pthread_mutex_unlock(&s->mutex);
  munmap(x->room, x->room_bytes);
  free(x->places);
}

// Maximum bytes of the streamed experts of all groups.
void switchyard_limit(struct pool *p, uint64_t bytes) {
  struct streams *s = streams_of(p);
  if (s) s->limit = bytes;
}

// Bytes read, hits, misses, nanoseconds of waiting and of reading, bytes in memory, and whether a read failed.
void switchyard_streams(struct pool *p, double *to) {
  struct streams *s = p->streams;
  if (!s) return;
  pthread_mutex_lock(&s->mutex);
  double found[] = { s->bytes_read, s->hits, s->misses, s->waited, s->reading, s->used, s->failed };
  memcpy(to, found, sizeof found);
  pthread_mutex_unlock(&s->mutex);
}
`;
