/** The C text that makes parts of files memory. */

/** Bytes of a large page. */
const LARGE_PAGE = 1 << 21;

/**
 * A page of memory is a page of a file, so parts can follow each other in memory as they do not in their files only where
 * all of them begin at the same place of a page. Where one part ends and the next begins, a page has bytes of two: it is
 * memory of its own, and these bytes are read. On both sides are pages that may be read.
 *
 * Where the system keeps files in large pages, it maps those that begin at the same place of one in memory and in the file, and
 * that are mapped whole: so what is around the parts in their files is mapped as well.
 */
export const FILES_IN_C = `
struct part { uint64_t descriptor, offset, bytes; };

static uint64_t page_bytes(void) { return sysconf(_SC_PAGESIZE); }

static int read_part(char *to, uint64_t bytes, const struct part *part, uint64_t from) {
  while (bytes > 0) {
    ssize_t got = pread(part->descriptor, to, bytes, part->offset + from);
    if (got <= 0) return 0;
    to += got; from += got; bytes -= got;
  }
  return 1;
}

// Map a part, and what pages between \`low\` and \`high\` have of its file around it.
static int map_part(char *to, const struct part *part, uint64_t page, char *low, char *high) {
  char *end = to + part->bytes;
  char *first = low <= to ? low : (char *)(((uintptr_t)to + page - 1) / page * page);
  char *last = high >= end ? high : (char *)((uintptr_t)end / page * page);
  if (last <= first) return read_part(to, part->bytes, part, 0);
  void *whole = mmap(first, last - first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, part->descriptor, part->offset - (to - first));
  if (whole == MAP_FAILED) return 0;
  madvise(first, last - first, MADV_WILLNEED);
  if (first > to && !read_part(to, first - to, part, 0)) return 0;
  return last >= end || read_part(last, end - last, part, last - to);
}

// Where the pages of a mapping begin, and how many bytes they have.
static char *pages_of(char *start, uint64_t bytes, uint64_t page, uint64_t *size) {
  if (bytes >= ${LARGE_PAGE}) page = ${LARGE_PAGE};
  uint64_t skew = (uintptr_t)start % page;
  *size = (skew + bytes + page - 1) / page * page + 2 * page;
  return start - skew - page;
}

void switchyard_unmap(char *start, uint64_t bytes) {
  uint64_t size;
  char *base = pages_of(start, bytes, page_bytes(), &size);
  munmap(base, size);
}

// Where pages of the file in front of a part may begin, and where those behind it may end: large ones if they can be.
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

// Parts of files as memory, or 0 where pages do not fit them.
char *switchyard_map(uint64_t count, const struct part *parts) {
  uint64_t page = page_bytes(), bytes = 0, skew = parts[0].offset % page, place = skew, largest = 0, size;
  if (skew % 4) return 0;
  for (uint64_t i = 0; i < count; i++) {
    if (parts[i].offset % page != (skew + bytes) % page) return 0;
    if (parts[i].bytes > largest) largest = parts[i].bytes, place = (parts[i].offset - bytes) % ${LARGE_PAGE};
    bytes += parts[i].bytes;
  }
  char *before = pages_of((char *)place, bytes, page, &size);
  // Room for a start at that place of a large page.
  char *room = mmap(0, size + ${LARGE_PAGE}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return 0;
  uint64_t apart = ((uintptr_t)before - (uintptr_t)room) % ${LARGE_PAGE};
  if (apart > 0) munmap(room, apart);
  char *base = room + apart, *start = base + ((char *)place - before), *to = start;
  munmap(base + size, ${LARGE_PAGE} - apart);
  for (uint64_t i = 0; i < count; to += parts[i++].bytes) {
    char *low = i == 0 ? start_of(to, &parts[i], page) : to + 1, *end = to + parts[i].bytes;
    char *high = i == count - 1 ? end_of(to, &parts[i], page) : end - 1;
    if (map_part(to, &parts[i], page, low, high)) continue;
    munmap(base, size);
    return 0;
  }
  return start;
}
`;
