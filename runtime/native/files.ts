/** C text that maps parts of files into memory. */

/** Bytes of a large page. */
const LARGE_PAGE = 1 << 21;

/**
 * Mapping works in pages, so parts can be adjacent in memory (and not in their files) only if all of them start at the
 * same offset in a page. The page at the boundary of two parts contains bytes of both: it is anonymous memory, and
 * these bytes are read. Readable pages surround the parts. A part with the descriptor -1 is a hole: addresses without
 * a file.
 *
 * If the system caches files in large pages, it maps those that start at the same offset in memory and in the file and
 * are mapped completely. Therefore the file contents around the parts are mapped too.
 */
export const FILES_IN_C = `
struct part { uint64_t descriptor, offset, bytes; };
static int is_hole(const struct part *x) { return x->descriptor == -1ull; }

// Pages of files. Nodes are reused and never freed, because a signal may arrive at any time.
struct mapping { _Atomic(char *) start, end; struct mapping *next; };
static _Atomic(struct mapping *) mappings;
static pthread_mutex_t mapping_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction other_handler;

// Handles a page that its file no longer has, because the file was truncated, or that cannot be read: it and the
// following pages become zeros so that the launch ends, and no other launch starts.
static void on_bus_error(int number, siginfo_t *info, void *context) {
  char *at = info->si_addr;
  for (struct mapping *m = atomic_load(&mappings); m; m = m->next) {
    char *start = atomic_load(&m->start), *end = atomic_load(&m->end);
    if (at < start || at >= end) continue;
    char *page = at - (uintptr_t)at % sysconf(_SC_PAGESIZE);
    if (mmap(page, end - page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) break;
    atomic_store(&lost, at);
    return;
  }
  if (other_handler.sa_flags & SA_SIGINFO) other_handler.sa_sigaction(number, info, context);
  else if (other_handler.sa_handler == SIG_DFL || other_handler.sa_handler == SIG_IGN) signal(number, SIG_DFL);
  else other_handler.sa_handler(number);
}

static void install_handler(void) {
  struct sigaction mine = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK };
  sigemptyset(&mine.sa_mask);
  sigaction(SIGBUS, &mine, &other_handler);
}

static int add_mapping(char *start, char *end) {
  pthread_mutex_lock(&mapping_mutex);
  struct mapping *m = atomic_load(&mappings);
  while (m && atomic_load(&m->start)) m = m->next;
  int fresh = !m;
  if (fresh && (m = calloc(1, sizeof *m))) m->next = atomic_load(&mappings);
  if (m) {
    atomic_store(&m->end, end);
    atomic_store(&m->start, start);
    if (fresh) atomic_store(&mappings, m);
  }
  pthread_mutex_unlock(&mapping_mutex);
  return m != 0;
}

static void remove_mappings(char *base, uint64_t size) {
  pthread_mutex_lock(&mapping_mutex);
  char *at = atomic_load(&lost);
  if (at >= base && at < base + size) atomic_store(&lost, 0);
  for (struct mapping *m = atomic_load(&mappings); m; m = m->next) {
    char *start = atomic_load(&m->start);
    if (start < base || start >= base + size) continue;
    atomic_store(&m->end, 0);
    atomic_store(&m->start, 0);
  }
  pthread_mutex_unlock(&mapping_mutex);
}

// An address in lost pages of a file, or 0.
char *switchyard_lost(void) { return atomic_load(&lost); }

uint64_t switchyard_page_bytes(void) { return sysconf(_SC_PAGESIZE); }
static uint64_t page_bytes(void) { return switchyard_page_bytes(); }

static int read_part(char *to, uint64_t bytes, const struct part *part, uint64_t from) {
  while (bytes > 0) {
    ssize_t got = pread(part->descriptor, to, bytes, part->offset + from);
    if (got <= 0) return 0;
    to += got; from += got; bytes -= got;
  }
  return 1;
}

// Maps a part, and the pages of its file around it between \`low\` and \`high\`.
static int map_part(char *to, const struct part *part, uint64_t page, char *low, char *high) {
  char *end = to + part->bytes;
  char *first = low <= to ? low : (char *)(((uintptr_t)to + page - 1) / page * page);
  char *last = high >= end ? high : (char *)((uintptr_t)end / page * page);
  if (last <= first) return read_part(to, part->bytes, part, 0);
  void *whole = mmap(first, last - first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, part->descriptor, part->offset - (to - first));
  if (whole == MAP_FAILED || !add_mapping(first, last)) return 0;
  if (first > to && !read_part(to, first - to, part, 0)) return 0;
  return last >= end || read_part(last, end - last, part, last - to);
}

// Start of the pages of a mapping, and their bytes.
static char *pages_of(char *start, uint64_t bytes, uint64_t page, uint64_t *size) {
  if (bytes >= ${LARGE_PAGE}) page = ${LARGE_PAGE};
  uint64_t skew = (uintptr_t)start % page;
  *size = (skew + bytes + page - 1) / page * page + 2 * page;
  return start - skew - page;
}

void switchyard_unmap(char *start, uint64_t bytes) {
  uint64_t size;
  char *base = pages_of(start, bytes, page_bytes(), &size);
  remove_mappings(base, size);
  munmap(base, size);
}

// Limits of the pages of the file before and after a part: large ones if possible.
static char *start_of(char *to, const struct part *part, uint64_t page) {
  uint64_t large = (uintptr_t)to % ${LARGE_PAGE};
  return to - (part->offset % ${LARGE_PAGE} == large && part->bytes >= ${LARGE_PAGE} ? large : (uintptr_t)to % page);
}
static char *end_of(char *to, const struct part *part, uint64_t page) {
  char *end = to + part->bytes;
  uint64_t large = -(uintptr_t)end % ${LARGE_PAGE};
  struct stat file;
  if (part->offset % ${LARGE_PAGE} != (uintptr_t)to % ${LARGE_PAGE} || part->bytes < ${LARGE_PAGE} ||
      fstat(part->descriptor, &file) || file.st_size < part->offset + part->bytes + large) large = -(uintptr_t)end % page;
  return end + large;
}

// Limits of the pages of a part in memory: those of its file around it, unless another part is in them.
static char *low_of(char *to, const struct part *parts, uint64_t i, uint64_t page) {
  if (i > 0 && !is_hole(&parts[i - 1])) return to + 1;
  char *low = start_of(to, &parts[i], page);
  if (i < 2) return low;
  char *hole = to - parts[i - 1].bytes;
  hole += -(uintptr_t)hole % page;
  return low > hole ? low : hole;
}
static char *high_of(char *to, const struct part *parts, uint64_t i, uint64_t count, uint64_t page) {
  char *end = to + parts[i].bytes;
  if (i + 1 < count && !is_hole(&parts[i + 1])) return end - 1;
  char *high = end_of(to, &parts[i], page);
  if (i + 2 >= count) return high;
  char *hole = end + parts[i + 1].bytes;
  hole -= (uintptr_t)hole % page;
  return high < hole ? high : hole;
}

// Maps parts of files. Returns 0 if pages do not allow it.
char *switchyard_map(uint64_t count, const struct part *parts) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, install_handler);
  uint64_t page = page_bytes(), bytes = 0, first = 0, before = 0, largest = 0, place = 0, size;
  while (first < count && is_hole(&parts[first])) before += parts[first++].bytes;
  if (first == count) return 0;
  uint64_t skew = (parts[first].offset - before) % page;
  if (skew % 4) return 0;
  for (uint64_t i = 0; i < count; bytes += parts[i++].bytes) {
    if (is_hole(&parts[i])) continue;
    if (parts[i].offset % page != (skew + bytes) % page) return 0;
    if (parts[i].bytes > largest) largest = parts[i].bytes, place = (parts[i].offset - bytes) % ${LARGE_PAGE};
  }
  char *pages = pages_of((char *)place, bytes, page, &size);
  // Reserves addresses with a start at that offset in a large page.
  char *room = mmap(0, size + ${LARGE_PAGE}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return 0;
  uint64_t apart = ((uintptr_t)pages - (uintptr_t)room) % ${LARGE_PAGE};
  if (apart > 0) munmap(room, apart);
  char *base = room + apart, *start = base + ((char *)place - pages), *to = start;
  munmap(base + size, ${LARGE_PAGE} - apart);
  for (uint64_t i = 0; i < count; to += parts[i++].bytes) {
    if (is_hole(&parts[i])) continue;
    if (map_part(to, &parts[i], page, low_of(to, parts, i, page), high_of(to, parts, i, count, page))) continue;
    remove_mappings(base, size);
    munmap(base, size);
    return 0;
  }
  return start;
}
`;
