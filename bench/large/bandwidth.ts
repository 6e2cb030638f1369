/** The memory bandwidth of a multithreaded loop in C, for large pages and for pages of a file. */

import { openSync } from "node:fs";
import { loadNative } from "../../runtime/native/library.ts";

const TEXT = `
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
struct part { const uint64_t *from; uint64_t words, sum; };
static void *sum(void *argument) {
  struct part *p = argument;
  uint64_t s[8] = { 0 };
  for (uint64_t i = 0; i < p->words; i += 8)
    for (int j = 0; j < 8; j++) s[j] += p->from[i + j];
  for (int j = 0; j < 8; j++) p->sum += s[j];
  return 0;
}
void *bench_memory(uint64_t bytes) {
  char *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return 0;
  madvise(p, bytes, MADV_HUGEPAGE);
  memset(p, 1, bytes);
  return p;
}
void *bench_file(int descriptor, uint64_t bytes) {
  void *p = mmap(0, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  return p == MAP_FAILED ? 0 : p;
}
uint64_t bench_read(void *from, uint64_t bytes, uint32_t threads) {
  pthread_t ids[64];
  struct part parts[64];
  uint64_t words = bytes / 8 / threads / 8 * 8, all = 0;
  for (uint32_t i = 0; i < threads; i++) parts[i] = (struct part){ (uint64_t *)from + i * words, words, 0 };
  for (uint32_t i = 1; i < threads; i++) pthread_create(&ids[i], 0, sum, &parts[i]);
  sum(&parts[0]);
  for (uint32_t i = 1; i < threads; i++) pthread_join(ids[i], 0);
  for (uint32_t i = 0; i < threads; i++) all += parts[i].sum;
  return all;
}
`;

/** Returns loops that read a number of bytes once: from memory in large pages, and from a cached file. */
export async function readLoops(
  file: string,
  { bytes, threads }: { readonly bytes: number; readonly threads: number },
): Promise<{ readonly [K in typeof LOOPS[number]]: () => void }> {
  const { objects } = await loadNative();
  const library = (await import("koffi")).load(await objects.library(TEXT));
  const memory = library.func("void *bench_memory(uint64_t bytes)")(bytes);
  const mapped = library.func(
    "void *bench_file(int descriptor, uint64_t bytes)",
  )(openSync(file, "r"), bytes);
  const read = library.func(
    "uint64_t bench_read(void *from, uint64_t bytes, uint32_t threads)",
  );
  if (!memory || !mapped) {
    throw new Error("Cannot measure: no memory. Free some");
  }
  return {
    [LOOPS[0]]: () => void read(memory, bytes, threads),
    [LOOPS[1]]: () => void read(mapped, bytes, threads),
  };
}

/** Names of the loops. */
export const LOOPS = [
  "a loop in C, large pages",
  "a loop in C, the file's pages",
] as const;
