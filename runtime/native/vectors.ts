/**
 * C text before every printed kernel: vectors of `LANES` lanes, bounds-checked array accesses, and operators and
 * functions of the vector IR; compiled without contraction.
 */

import { STREAM_APART, tileWidths } from "../vector/tiled_loop.ts";
import { MATH } from "../vector/math.ts";
import { LINE } from "../vector/prefetch.ts";
import { Emitter } from "./emit.ts";
import { Writer } from "./writer.ts";
import { FUSED_MACROS } from "./compiler.ts";
import { ALONG_IN_C } from "./along.ts";
import { BYTES_IN_C } from "./bytes.ts";
import { LAUNCH_STRUCT } from "./records.ts";

/** Readable bytes before and after every array: one vector of the widest kind. */
export const GUARD_BYTES = 64;

/** Bytes between a load that fills workgroup memory and the prefetch that it queues. */
const AHEAD = 512;

/** Capacity of the prefetch queue; the oldest addresses are dropped. */
const AHEAD_ENTRIES = 16;

/**
 * A queue of addresses to prefetch, each in `LANES` rows. Loops that fill workgroup memory enqueue the addresses of
 * later loads. Loops that compute dequeue, half an entry before each, because many prefetches at once delay the
 * following loads.
 */
const AHEAD_IN_C = `
struct ahead {
  u first, end, done;
  struct { const char *from; uint64_t apart; } rows[${AHEAD_ENTRIES}];
};
INLINE void add_ahead(struct ahead *a, const char *from, uint64_t apart) {
  if (a->end - a->first == ${AHEAD_ENTRIES}) a->first++, a->done = 0;
  a->rows[a->end % ${AHEAD_ENTRIES}].from = from;
  a->rows[a->end++ % ${AHEAD_ENTRIES}].apart = apart;
}
INLINE void prefetch_ahead(struct ahead *a) {
  if (a->first == a->end) return;
  uint64_t apart = a->rows[a->first % ${AHEAD_ENTRIES}].apart;
  const char *from = a->rows[a->first % ${AHEAD_ENTRIES}].from + a->done * apart;
  UNROLL(LANES)
  for (u i = 0; i < LANES / 2; i++) __builtin_prefetch(from + i * apart);
  a->done = (a->done + LANES / 2) % LANES;
  if (a->done == 0) a->first++;
}
`;

/** Prefetches the same line of the rows after those of a transposed load. */
const NEXT_IN_C = `
INLINE void prefetch_next(const char *from, uint64_t at, uint64_t apart, uint64_t step) {
  if (at % ${LINE} >= step) return;
  UNROLL(LANES)
  for (u i = LANES; i < 2 * LANES; i++) __builtin_prefetch(from + i * apart, 0, 2);
}
`;

/** Bytes between the loads of a stream and its prefetches. */
const STREAM_AHEAD = 8192;

/**
 * Prefetches a stream, rows that are adjacent in memory. A load reads `bytes` bytes of each lane's row, from byte `at`
 * on, and prefetches an equal part of the rows ahead. With 16 lanes, it prefetches into the second-level cache:
 * prefetches into the first one occupy the line buffers that loads need.
 */
const STREAM_IN_C = `
#define STREAM_LEVEL (LANES == 16 ? 2 : 3)
INLINE void prefetch_stream(const char *from, uint64_t at, uint64_t bytes) {
  const char *line = from - at + at * LANES + ${STREAM_AHEAD};
  UNROLL(LANES)
  for (u i = 0; i < LANES * bytes; i += ${LINE}) __builtin_prefetch(line + i, 0, STREAM_LEVEL);
}
`;

/**
 * `turnN` loads N words per lane, from rows with a stride of `apart` bytes, and transposes them: vector i contains word
 * i of each. They start `at` bytes after the beginning of an array with such rows, and the next ones about `step` bytes
 * later: the first load in a line prefetches. Vectors are assembled from LANES / N
 * rows; in each of log2 N steps, pairs of vectors exchange half of their lanes.
 */
function turnInC(lanes: number, words: number): string {
  const all = Array.from({ length: lanes }, (_, i) => i);
  const vectors = all.slice(0, words);
  const load = (i: number) => {
    const rows = all.slice(0, lanes / words).map((part) =>
      `ROW${words}(from + ${words * part + i} * apart)`
    );
    return lanes === words
      ? rows[0]!
      : `JOIN${rows.length}(${rows.join(", ")})`;
  };
  const text = [
    `INLINE void turn${words}(vu *tile, const word *array, uint64_t at, uint64_t apart, uint64_t step, struct ahead *later, struct along *along) {`,
    "  const char *from = (const char *)array + at;",
    `  const u streams = along && apart <= ${STREAM_APART};`,
    `  const char *line = streams ? stream_line((const char *)array, from, at % apart, apart, along) : 0;`,
    `  const u far = streams && along->far;`,
    // Prefetches of a stream are between its loads.
    ...vectors.flatMap((i) => {
      const own = all.slice(i * lanes / words, (i + 1) * lanes / words);
      const lines = (locality: number) =>
        own.map((lane) =>
          `__builtin_prefetch(line + ${lane} * apart, 0, ${locality});`
        ).join(" ");
      return [
        `  vu v${i} = ${load(i)};`,
        `  if (far) { ${lines(2)} } else if (streams) { ${lines(3)} }`,
      ];
    }),
    `  if (later) add_ahead(later, from + ${AHEAD} + (at % apart + ${AHEAD}) / apart * (LANES - 1) * apart, apart);`,
    `  else if (!along) prefetch_next(from, at % apart, apart, step);`,
    `  else if (apart > ${STREAM_APART}) prefetch_along((const char *)array, from, at % apart, apart, step, along);`,
    // Without it, GCC takes most of its time to try combinations of these loads with what follows.
    '  __asm__ volatile("");',
    "  vu a, b;",
  ];
  for (let step = 1; step < words; step *= 2) {
    const [first, distance] = exchanged(step, { lanes, words });
    const low = first.join(", ");
    const high = first.map((lane) => lane + distance).join(", ");
    const shuffle = step === 2 ? "SHUFFLE_PAIRS" : "SHUFFLE";
    for (const i of vectors.filter((i) => !(i & step))) {
      const [v, w] = [`v${i}`, `v${i + step}`];
      text.push(
        `  a = ${shuffle}(${v}, ${w}, ${low}); b = ${shuffle}(${v}, ${w}, ${high});`,
        `  ${v} = a; ${w} = b;`,
      );
    }
  }
  // Interleaving exchanges the lowest two bits of the numbers of vectors.
  const stores = vectors.map((i) =>
    `  tile[${i}] = v${i & ~3 | (i & 1) << 1 | i >> 1 & 1};`
  );
  return [...text, ...stores, "}", ""].join("\n");
}

/**
 * The lanes of two vectors that a step of a transposition combines in its first result. Plus `apart`, they are those of
 * its second result. Of the possible orders, these have the fastest instructions: words and pairs of words interleaved
 * within four lanes, then every second four lanes of both vectors. `step` 2 counts pairs.
 */
function exchanged(
  step: number,
  { lanes, words }: { readonly lanes: number; readonly words: number },
): readonly [lanes: readonly number[], apart: number] {
  const count = step === 2 ? lanes / 2 : lanes;
  const half = count / 2;
  const [first, apart]: [(i: number) => number, number] = step === 1
    ? [(i) => (i & 1) * count + (i & ~3) + (i >> 1 & 1), 2]
    : step === 2
    ? [(i) => (i & 1) * count + (i & ~1), 1]
    : words === lanes
    ? [(i) => (i < half ? 0 : count) + (2 * (i & ~3)) % count + (i & 3), 4]
    : [(i) => i & step ? count + i - step : i, step];
  return [Array.from({ length: count }, (_, i) => first(i)), apart];
}

/** Runs shorter than a vector, and vectors composed of them. */
function runsInC(lanes: number): string {
  const join = (parts: number) => {
    const words = lanes / parts;
    const names = ["a", "b", "c", "d"].slice(0, parts);
    const numbers = (n: number) =>
      Array.from({ length: n }, (_, i) => i).join(", ");
    const type = `run_of_${words}`;
    const halves = parts === 2
      ? `__builtin_shufflevector(a, b, ${numbers(lanes)})`
      : `__builtin_shufflevector(__builtin_shufflevector(a, b, ${
        numbers(lanes / 2)
      }), __builtin_shufflevector(c, d, ${numbers(lanes / 2)}), ${
        numbers(lanes)
      })`;
    return `typedef u ${type} __attribute__((vector_size(${
      4 * words
    }), aligned(1), may_alias));
#define ROW${words}(p) *(const ${type} *)(p)
INLINE vu JOIN${parts}(${names.map((n) => `${type} ${n}`).join(", ")}) {
#if defined __clang__ || __GNUC__ >= 12
  return ${halves};
#else
  vu v;
  for (int l = 0; l < ${words}; l++) ${
      names.map((name, i) => `v[l + ${i * words}] = ${name}[l];`).join(" ")
    }
  return v;
#endif
}
`;
  };
  return `#define ROW${lanes}(p) *(const run_of_bytes *)(p)\n` +
    tileWidths(lanes).slice(1).map((words) => join(lanes / words)).join("");
}

/** `fma` nodes: rounded twice, or, if `fused`, once if the processor has an instruction for it. */
function fmaInC(fused: boolean): string {
  const twice = "#define f_fma(a, b, c) ((a) * (b) + (c))\n";
  return fused
    ? `#if ${FUSED_MACROS.map((macro) => `defined ${macro}`).join(" || ")}
INLINE vf f_fma(vf a, vf b, vf c) {
#ifdef __clang__
#pragma clang fp contract(on)
  return a * b + c;
#else
  vf r;
  for (int l = 0; l < LANES; l++) r[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return r;
#endif
}
#else
${twice}#endif
`
    : twice;
}

/** Options of the text for vector functions. */
export interface VectorsOptions {
  readonly lanes: number;
  /** Whether `fma` nodes are rounded once, if the processor supports it. */
  readonly fused: boolean;
  /** Whether packed bytes are used: headers of intrinsics take longer to compile than a kernel. */
  readonly bytes: boolean;
}

/** The text before functions. */
export function vectorsInC({ lanes, fused, bytes }: VectorsOptions): string {
  const numbers = Array.from({ length: lanes }, (_, i) => i).join(", ");
  return `#include <stdint.h>
#include <math.h>
#define LANES ${lanes}
#if !defined __clang__ && defined __AVX512F__ && LANES == 16
// Compiles loops over lanes to one instruction.
#pragma GCC target("prefer-vector-width=512")
#endif
typedef uint32_t u;
typedef int32_t i;
typedef u __attribute__((may_alias)) word;
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef u vu __attribute__((vector_size(4 * LANES)));
typedef i vi __attribute__((vector_size(4 * LANES)));
typedef double vd __attribute__((vector_size(8 * LANES)));
typedef int64_t vl __attribute__((vector_size(8 * LANES)));
typedef uint64_t vul __attribute__((vector_size(8 * LANES)));
typedef int64_t pairs __attribute__((vector_size(LANES < 2 ? 8 : 4 * LANES)));
typedef vu __attribute__((aligned(4), may_alias)) run_of_words;
typedef vu __attribute__((aligned(1), may_alias)) run_of_bytes;
typedef u __attribute__((aligned(1), may_alias)) bytes;
${LAUNCH_STRUCT}
static const vu IOTA = { ${numbers} };
#define EACH_LANE(x) ${Array(lanes).fill("x").join(", ")}
${BODY}${fmaInC(fused)}${
    runsInC(lanes)
  }${AHEAD_IN_C}${ALONG_IN_C}${NEXT_IN_C}${STREAM_IN_C}${
    tileWidths(lanes).map((words) => turnInC(lanes, words)).join("")
  }${MATH_IN_C}${bytes ? BYTES_IN_C : ""}`;
}

const BODY = `
#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE_PAIRS(a, b, ...) (vu)__builtin_shufflevector((pairs)a, (pairs)b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vu){ __VA_ARGS__ })
#define SHUFFLE_PAIRS(a, b, ...) (vu)__builtin_shuffle((pairs)a, (pairs)b, (pairs){ __VA_ARGS__ })
#endif
#define PRAGMA(...) _Pragma(#__VA_ARGS__)
#ifdef __clang__
#define UNROLL(n) PRAGMA(clang loop unroll_count(n))
#else
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif
#define CALLED static __attribute__((noinline))
// Otherwise, GCC does not vectorize loops over lanes inside several conditions.
#define KERNEL __attribute__((hot)) void

// Values.
INLINE u bits(float x) { union { float f; u w; } a = { x }; return a.w; }
INLINE float number(u w) { union { u w; float f; } a = { w }; return a.f; }
INLINE vu splat(u x) { return x + (vu){ 0 }; }
INLINE vf splatf(float x) { return (vf){ EACH_LANE(x) }; }
INLINE vu pick(vu m, vu a, vu b) { return (a & m) | (b & ~m); }
INLINE vf pickf(vu m, vf a, vf b) { return (vf)pick(m, (vu)a, (vu)b); }
INLINE vd pickd(vl m, vd a, vd b) { return (vd)(((vl)a & m) | ((vl)b & ~m)); }
INLINE u v_any(vu m) { u r = 0; for (int l = 0; l < LANES; l++) r |= m[l]; return r != 0; }
INLINE u v_all(vu m) { u r = ~0u; for (int l = 0; l < LANES; l++) r &= m[l]; return r != 0; }

// Arrays: an index out of bounds becomes 0, a store out of bounds is dropped. A run that overlaps the array may extend
// into the guard.
INLINE u load(const word *a, u n, u at) { return a[at < n ? at : 0]; }
INLINE vu load_run(const word *a, u n, u at) {
  u end = at + LANES;
  int64_t first = end <= (uint64_t)n + LANES ? (int64_t)end - LANES : 0;
  return *(const run_of_words *)(a + first);
}
INLINE vu gather(const word *a, u n, vu at) {
  at &= (vu)(at < splat(n));
  vu r;
  for (int l = 0; l < LANES; l++) r[l] = a[at[l]];
  return r;
}
#define ON(p, by) ((const word *)((const char *)(p) + (by)))
INLINE u load_bytes(const word *a, u n, u at) {
  return *(const bytes *)ON(a, (uint64_t)at + 3 < 4 * (uint64_t)n ? at : 0);
}
INLINE vu gather_bytes(const word *a, u n, vu at) {
  vu r;
  for (int l = 0; l < LANES; l++) r[l] = load_bytes(a, n, at[l]);
  return r;
}
CALLED vu gather_called_bytes(const word *a, u n, vu at) { return gather_bytes(a, n, at); }
CALLED vu gather_called(const word *a, u n, vu at) { return gather(a, n, at); }
INLINE void store(word *a, u n, u at, u value) { if (at < n) a[at] = value; }
CALLED void scatter(word *a, u n, vu at, vu value, vu m) {
  UNROLL(LANES)
  for (int l = 0; l < LANES; l++) if (m[l] && at[l] < n) a[at[l]] = value[l];
}
INLINE void store_run(word *a, u n, u at, vu value) {
  if ((uint64_t)at + LANES <= n) *(run_of_words *)(a + at) = value;
  else scatter(a, n, at + IOTA, value, ~(vu){ 0 });
}
INLINE void store_run_masked(word *a, u n, u at, vu value, vu m) {
  if (v_all(m)) store_run(a, n, at, value);
  else scatter(a, n, at + IOTA, value, m);
}
// The same in memory that no other thread writes.
INLINE void store_run_replaced(word *a, u n, u at, vu value, vu m) {
  if ((uint64_t)at + LANES <= n) *(run_of_words *)(a + at) = pick(m, value, *(run_of_words *)(a + at));
  else scatter(a, n, at + IOTA, value, m);
}

// Integers.
INLINE vu v_min_u(vu a, vu b) { return pick((vu)(a < b), a, b); }
INLINE vu v_max_u(vu a, vu b) { return pick((vu)(a > b), a, b); }
INLINE vu v_min_s(vu a, vu b) { return pick((vu)((vi)a < (vi)b), a, b); }
INLINE vu v_max_s(vu a, vu b) { return pick((vu)((vi)a > (vi)b), a, b); }

// f32.
#define LANEWISE(name, type, fn) \\
  INLINE type name(type x) { type r; for (int l = 0; l < LANES; l++) r[l] = fn(x[l]); return r; }
LANEWISE(f_nearest, vf, __builtin_rintf)
LANEWISE(f_trunc, vf, __builtin_truncf)
LANEWISE(f_floor, vf, __builtin_floorf)
LANEWISE(f_ceil, vf, __builtin_ceilf)
LANEWISE(f_sqrt, vf, __builtin_sqrtf)
LANEWISE(d_nearest, vd, __builtin_rint)
INLINE vf f_min(vf a, vf b) { vf r; for (int l = 0; l < LANES; l++) r[l] = b[l] < a[l] ? b[l] : a[l]; return r; }
INLINE vf f_max(vf a, vf b) { vf r; for (int l = 0; l < LANES; l++) r[l] = a[l] < b[l] ? b[l] : a[l]; return r; }
INLINE vf f_abs(vf x) { return (vf)((vu)x & 0x7fffffffu); }
INLINE vf f_from_s(vu x) { return __builtin_convertvector((vi)x, vf); }
INLINE vf f_from_u(vu x) { return __builtin_convertvector(x, vf); }
// Saturates numbers out of range; NaN becomes 0.
INLINE vu v_to_s(vf x) {
  vu below = (vu)(x < -2147483648.0f), above = (vu)(x >= 2147483648.0f);
  vf inside = (vf)((vu)x & (vu)(x == x) & ~(below | above));
  vu whole = (vu)__builtin_convertvector(inside, vi);
  return pick(below, splat(0x80000000u), pick(above, splat(0x7fffffffu), whole));
}
// Unspecified out of range.
INLINE vu v_whole(vf x) { return (vu)__builtin_convertvector(x, vi); }
INLINE vu v_to_u(vf x) {
  vu above = (vu)(x >= 4294967296.0f), half = (vu)(x >= 2147483648.0f) & ~above;
  vf inside = (vf)((vu)x & (vu)(x > 0.0f) & ~above);
  vf rest = inside - (vf)((vu)splatf(2147483648.0f) & half);
  vu whole = (vu)__builtin_convertvector(rest, vi) | (half & 0x80000000u);
  return pick(above, ~(vu){ 0 }, whole);
}

// f64 and 64-bit integers.
INLINE vd splatd(double x) { return x + (vd){ 0 }; }
INLINE vl splatl(int64_t x) { return x + (vl){ 0 }; }
INLINE vd widened(vf x) { return __builtin_convertvector(x, vd); }
INLINE vf narrowed(vd x) { return __builtin_convertvector(x, vf); }
INLINE vd d_min(vd a, vd b) { return pickd(b < a, b, a); }
INLINE vd d_max(vd a, vd b) { return pickd(a < b, b, a); }
INLINE vd d_abs(vd x) { return (vd)((vl)x & INT64_MAX); }
INLINE vd d_from_l(vl x) { return __builtin_convertvector(x, vd); }
INLINE vl l_from_d(vd n) {
  vd known = (vd)((vl)n & (n == n));
  known = d_max(d_min(known, splatd(2147483647.0)), splatd(-2147483648.0));
  return __builtin_convertvector(__builtin_convertvector(known, vi), vl);
}
`;

/** The functions of `math.ts`. */
const MATH_IN_C = Object.entries(MATH).map(
  ([name, { params, body, called }]) => {
    const writer = new Writer();
    const emitter = new Emitter(writer);
    const list = params.map((param) => `${param.type} ${emitter.name(param)}`);
    writer.line(`return ${emitter.values(body)[0]!};`);
    const how = called.includes("native") ? "CALLED" : "INLINE";
    const inside = writer.text();
    const text = `${how} vf math_${name}(${list.join(", ")}) {\n${inside}\n}\n`;
    const shift = name === "unpackF16Lo" ? 0 : name === "unpackF16Hi" ? 16 : -1;
    return shift < 0 ? text : unpackedInC({ name, shift, others: text });
  },
).join("");

/** Widens halves of words by the instruction for 8 or 16 of them; other vectors by `others`. */
function unpackedInC(
  { name, shift, others }: {
    readonly name: string;
    readonly shift: number;
    readonly others: string;
  },
): string {
  return `#if LANES == 8 && defined __F16C__
INLINE vf math_${name}(vu x) {
  typedef uint16_t halves __attribute__((vector_size(16)));
  typedef int16_t operand __attribute__((vector_size(16)));
  return (vf)__builtin_ia32_vcvtph2ps256((operand)__builtin_convertvector(x >> ${shift}, halves));
}
#elif LANES == 16 && defined __AVX512F__
INLINE vf math_${name}(vu x) {
  typedef uint16_t halves __attribute__((vector_size(32)));
  typedef int16_t operand __attribute__((vector_size(32)));
  return (vf)__builtin_ia32_vcvtph2ps512_mask((operand)__builtin_convertvector(x >> ${shift}, halves), splatf(0), -1, 4);
}
#else
${others}#endif
`;
}
