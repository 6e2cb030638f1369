/** The C text that makes parts of files memory. */

/**
 * A page of memory is a page of a file, so parts can follow each other in memory as they do not in their files only where
 * all of them begin at the same place of a page. Where one part ends and the next begins, a page has bytes of two: it is
 * memory of its own, and these bytes are read. On both sides are pages that may be read.
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

static int map_part(char *to, const struct part *part, uint64_t page) {
  char *end = to + part->bytes;
  char *first = (char *)(((uintptr_t)to + page - 1) / page * page);
  char *last = (char *)((uintptr_t)end / page * page);
  if (last <= first) return read_part(to, part->bytes, part, 0);
  uint64_t head = first - to;
  void *whole = mmap(first, last - first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, part->descriptor, part->offset + head);
  if (whole == MAP_FAILED) return 0;
  madvise(first, last - first, MADV_WILLNEED);
  return read_part(to, head, part, 0) && read_part(last, end - last, part, last - to);
}

// Where the pages of a mapping begin, and how many bytes they have.
static char *pages_of(char *start, uint64_t bytes, uint64_t page, uint64_t *size) {
  uint64_t skew = (uintptr_t)start % page;
  *size = (skew + bytes + page - 1) / page * page + 2 * page;
  return start - skew - page;
}

void switchyard_unmap(char *start, uint64_t bytes) {
  uint64_t size;
  char *base = pages_of(start, bytes, page_bytes(), &size);
  munmap(base, size);
}

// Parts of files as memory, or 0 where pages do not fit them.
char *switchyard_map(uint64_t count, const struct part *parts) {
  uint64_t page = page_bytes(), bytes = 0, skew = parts[0].offset % page, size;
  if (skew % 4) return 0;
  for (uint64_t i = 0; i < count; i++) {
    if (parts[i].offset % page != (skew + bytes) % page) return 0;
    bytes += parts[i].bytes;
  }
  pages_of((char *)skew, bytes, page, &size);
  char *base = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return 0;
  char *start = base + page + skew, *to = start;
  for (uint64_t i = 0; i < count; to += parts[i++].bytes) {
    if (map_part(to, &parts[i], page)) continue;
    munmap(base, size);
    return 0;
  }
  return start;
}
`;
