/**
 * The C text that every printed kernel begins with: vectors of `LANES` lanes, array accesses that stay within bounds, and
 * the functions of the kernel tree. Each function takes the steps of its WebAssembly form (`../cpu/math.ts`), so that both
 * devices compute the same bits; compiled without contraction.
 */

import { FUSED_MACROS } from "./compiler.ts";
import { LAUNCH_STRUCT } from "./records.ts";

/** Bytes before and after every array that vectors may read: one vector of the widest kind. */
export const GUARD_BYTES = 64;

/** Words between a load that fills workgroup memory and the prefetch that it queues. */
const AHEAD = 128;

/** Words of a cache line. */
const LINE_WORDS = 16;

/** Words between a transposed load and its prefetch. */
const ALONG = 256;

/** Addresses that are prefetched later; of those that do not fit, the oldest are left out. */
const AHEAD_ENTRIES = 16;

/**
 * A queue of addresses to prefetch, each in `LANES` rows. Loops that fill workgroup memory put into it what the next ones
 * will load, and those that compute take from it, half an entry before each: all at once, prefetches hold up the loads behind
 * them.
 */
const AHEAD_IN_C = `
struct ahead {
  u first, end, done;
  struct { const word *from; uint64_t apart; } rows[${AHEAD_ENTRIES}];
};
INLINE void add_ahead(struct ahead *a, const word *from, uint64_t apart) {
  if (a->end - a->first == ${AHEAD_ENTRIES}) a->first++, a->done = 0;
  a->rows[a->end % ${AHEAD_ENTRIES}].from = from;
  a->rows[a->end++ % ${AHEAD_ENTRIES}].apart = apart;
}
INLINE void prefetch_ahead(struct ahead *a) {
  if (a->first == a->end) return;
  uint64_t apart = a->rows[a->first % ${AHEAD_ENTRIES}].apart;
  const word *from = a->rows[a->first % ${AHEAD_ENTRIES}].from + a->done * apart;
  for (u i = 0; i < LANES / 2; i++) __builtin_prefetch(from + i * apart);
  a->done = (a->done + LANES / 2) % LANES;
  if (a->done == 0) a->first++;
}
`;

/**
 * Prefetches a line of each lane's row beside a transposed load. Past the end of the rows it continues with the rows
 * after them or, where two arrays alternate, with the next rows of the other one. Into the second-level cache: rows whose
 * distance is a power of two share a set of the first and evict each other there.
 */
const ALONG_IN_C = `
struct along { const word *array, *next, *other; };
INLINE void prefetch_along(const word *array, const word *from, uint64_t at, uint64_t apart, struct along *s) {
  const word *next = from - at + LANES * apart;
  if (at == 0) s->other = s->array == array ? 0 : s->next, s->array = array, s->next = next;
  uint64_t ahead = at + ${ALONG};
  const word *row = ahead < apart ? from + ${ALONG} : (s->other ? s->other : next) + ahead - apart;
  if (at / LANES % (${LINE_WORDS} / LANES)) return;
  for (u i = 0; i < LANES; i++) __builtin_prefetch(row + i * apart, 0, 2);
}
`;

/**
 * `turn` loads a vector for each lane, `apart` elements from each other, and transposes them: vector i has element i of
 * each. What it loads is `at` elements behind the beginning of an array whose rows are `apart`. In each of log2 steps pairs of vectors exchange halves, quarters, … of theirs.
 */
function turnInC(lanes: number): string {
  const all = Array.from({ length: lanes }, (_, i) => i);
  const text = [
    AHEAD_IN_C,
    ALONG_IN_C,
    "INLINE void turn(vu *tile, const word *array, uint64_t at, uint64_t apart, struct ahead *later, struct along *along) {",
    "  const word *from = array + at;",
    ...all.map((i) =>
      `  vu v${i} = *(const run_of_words *)(from + ${i} * apart);`
    ),
    `  if (later) add_ahead(later, from + ${AHEAD} + (at % apart + ${AHEAD}) / apart * (LANES - 1) * apart, apart);`,
    "  else prefetch_along(array, from, at % apart, apart, along);",
    "  vu a, b;",
  ];
  for (let step = 1; step < lanes; step *= 2) {
    const low = all.map((i) => i & step ? lanes + i - step : i).join(", ");
    const high = all.map((i) => i & step ? lanes + i : i + step).join(", ");
    for (const i of all.filter((i) => !(i & step))) {
      const [v, w] = [`v${i}`, `v${i + step}`];
      text.push(
        `  a = SHUFFLE(${v}, ${w}, ${low}); b = SHUFFLE(${v}, ${w}, ${high});`,
        `  ${v} = a; ${w} = b;`,
      );
    }
  }
  return [...text, ...all.map((i) => `  tile[${i}] = v${i};`), "}", ""].join(
    "\n",
  );
}

/** The product and sum of `fma` nodes: rounded twice, or, if `fused`, once where the processor has an instruction for that. */
function fmaInC(fused: boolean): string {
  const twice = "#define fma_of(a, b, c) ((a) * (b) + (c))\n";
  return fused
    ? `#if ${FUSED_MACROS.map((macro) => `defined ${macro}`).join(" || ")}
INLINE vf fma_of(vf a, vf b, vf c) {
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

/** The text for vectors of a number of lanes. `fused`: `fma` nodes are rounded once, if the processor can. */
export function vectorsInC(lanes: number, fused: boolean): string {
  const numbers = Array.from({ length: lanes }, (_, i) => i).join(", ");
  return `#include <stdint.h>
#include <math.h>
#define LANES ${lanes}
#if !defined __clang__ && defined __AVX512F__ && LANES == 16
// Loops over lanes become one instruction.
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
typedef vu __attribute__((aligned(4), may_alias)) run_of_words;
${LAUNCH_STRUCT}
static const vu IOTA = { ${numbers} };
${BODY}${fmaInC(fused)}${turnInC(lanes)}`;
}

const BODY = `
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vu){ __VA_ARGS__ })
#endif
#define CALLED static __attribute__((noinline))

// Values.
INLINE u bits(float x) { union { float f; u w; } a = { x }; return a.w; }
INLINE float number(u w) { union { u w; float f; } a = { w }; return a.f; }
INLINE vu splat(u x) { return x + (vu){ 0 }; }
INLINE vf splatf(float x) { return (vf)splat(bits(x)); }
INLINE vu mask(u condition) { return splat(0u - condition); }
INLINE vu pick(vu m, vu a, vu b) { return (a & m) | (b & ~m); }
INLINE vf pickf(vu m, vf a, vf b) { return (vf)pick(m, (vu)a, (vu)b); }
INLINE vd pickd(vl m, vd a, vd b) { return (vd)(((vl)a & m) | ((vl)b & ~m)); }
INLINE u any(vu m) { u r = 0; for (int l = 0; l < LANES; l++) r |= m[l]; return r != 0; }
INLINE u all(vu m) { u r = ~0u; for (int l = 0; l < LANES; l++) r &= m[l]; return r != 0; }

// Arrays: an index outside becomes 0, a store outside is dropped. A run that touches the array may reach into the guard.
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
CALLED vu gather_called(const word *a, u n, vu at) { return gather(a, n, at); }
INLINE void store(word *a, u n, u at, u value) { if (at < n) a[at] = value; }
CALLED void scatter(word *a, u n, vu at, vu value, vu m) {
  for (int l = 0; l < LANES; l++) if (m[l] && at[l] < n) a[at[l]] = value[l];
}
INLINE void store_run(word *a, u n, u at, vu value) {
  if ((uint64_t)at + LANES <= n) *(run_of_words *)(a + at) = value;
  else scatter(a, n, at + IOTA, value, ~(vu){ 0 });
}
INLINE void store_run_masked(word *a, u n, u at, vu value, vu m) {
  if (all(m)) store_run(a, n, at, value);
  else scatter(a, n, at + IOTA, value, m);
}

// Integers: nothing is undefined.
INLINE u divide(u a, u b) { return a / (b ? b : 1); }
INLINE u remain(u a, u b) { return a % (b ? b : 1); }
INLINE u divisor(u a, u b) { return b == 0 || (a == 0x80000000u && b == ~0u) ? 1 : b; }
INLINE u divide_signed(u a, u b) { return (u)((i)a / (i)divisor(a, b)); }
INLINE u remain_signed(u a, u b) { return (u)((i)a % (i)divisor(a, b)); }
INLINE vu divide_lanes(vu a, vu b) { return a / pick((vu)(b == 0), splat(1), b); }
INLINE vu remain_lanes(vu a, vu b) { return a % pick((vu)(b == 0), splat(1), b); }
INLINE vu divisor_lanes(vu a, vu b) {
  return pick((vu)(b == 0) | ((vu)(a == 0x80000000u) & (vu)(b == ~0u)), splat(1), b);
}
INLINE vu divide_lanes_signed(vu a, vu b) { return (vu)((vi)a / (vi)divisor_lanes(a, b)); }
INLINE vu remain_lanes_signed(vu a, vu b) { return (vu)((vi)a % (vi)divisor_lanes(a, b)); }
INLINE vu min_lanes(vu a, vu b) { return pick((vu)(a < b), a, b); }
INLINE vu max_lanes(vu a, vu b) { return pick((vu)(a > b), a, b); }
INLINE vu min_lanes_signed(vu a, vu b) { return pick((vu)((vi)a < (vi)b), a, b); }
INLINE vu max_lanes_signed(vu a, vu b) { return pick((vu)((vi)a > (vi)b), a, b); }

// f32.
#define LANEWISE(name, type, fn) \\
  INLINE type name(type x) { type r; for (int l = 0; l < LANES; l++) r[l] = fn(x[l]); return r; }
LANEWISE(nearest, vf, __builtin_rintf)
LANEWISE(truncated, vf, __builtin_truncf)
LANEWISE(floor_of, vf, __builtin_floorf)
LANEWISE(ceil_of, vf, __builtin_ceilf)
LANEWISE(root, vf, __builtin_sqrtf)
LANEWISE(nearest64, vd, __builtin_rint)
INLINE vf min_of(vf a, vf b) { vf r; for (int l = 0; l < LANES; l++) r[l] = b[l] < a[l] ? b[l] : a[l]; return r; }
INLINE vf max_of(vf a, vf b) { vf r; for (int l = 0; l < LANES; l++) r[l] = a[l] < b[l] ? b[l] : a[l]; return r; }
INLINE vf absolute(vf x) { return (vf)((vu)x & 0x7fffffffu); }
INLINE vf remainder_of(vf a, vf b) { return a - b * truncated(a / b); }
INLINE vf sign(vf x) {
  return pickf((vu)(x == 0.0f), splatf(0), (vf)((vu)splatf(1) | ((vu)x & 0x80000000u)));
}
INLINE vf from_signed(vu x) { return __builtin_convertvector((vi)x, vf); }
INLINE vf from_unsigned(vu x) { return __builtin_convertvector(x, vf); }
// What is too large or too small becomes the nearest there is; what is no number becomes 0.
INLINE vu to_signed(vf x) {
  vu below = (vu)(x < -2147483648.0f), above = (vu)(x >= 2147483648.0f);
  vf inside = (vf)((vu)x & (vu)(x == x) & ~(below | above));
  vu whole = (vu)__builtin_convertvector(inside, vi);
  return pick(below, splat(0x80000000u), pick(above, splat(0x7fffffffu), whole));
}
INLINE vu to_unsigned(vf x) {
  vu above = (vu)(x >= 4294967296.0f), half = (vu)(x >= 2147483648.0f) & ~above;
  vf inside = (vf)((vu)x & (vu)(x > 0.0f) & ~above);
  vf rest = inside - (vf)((vu)splatf(2147483648.0f) & half);
  vu whole = (vu)__builtin_convertvector(rest, vi) | (half & 0x80000000u);
  return pick(above, ~(vu){ 0 }, whole);
}

// f16 in the halves of words.
INLINE vf widen(vu moved, vu top) {
  vu magnitude = moved & 0x0fffe000u;
  vf scaled = (vf)magnitude * 0x1p112f;
  vu special = (vu)((vi)magnitude > 0x0f7fffff) & 0x7f800000u;
  return (vf)((vu)scaled | special | (top & 0x80000000u));
}
INLINE vf unpack_low(vu packed) { return widen(packed << 13, packed << 16); }
INLINE vf unpack_high(vu packed) { return widen(packed >> 3, packed); }
CALLED vf round_f16(vf x) {
  vu magnitude = (vu)x & 0x7fffffffu;
  vu rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & 0xffffe000u;
  vu normal = pick((vu)(rounded >= 0x47800000u), splat(0x7f800000u), rounded);
  vu tiny = (vu)(((vf)magnitude + 0.5f) - 0.5f);
  vu is_tiny = (vu)(magnitude < 0x38800000u), is_nan = (vu)(magnitude > 0x7f800000u);
  return (vf)(pick(is_nan, magnitude, pick(is_tiny, tiny, normal)) | ((vu)x & 0x80000000u));
}

// exp in f32: x = n ln 2 + r, a polynomial of r, and 2^n in two factors.
INLINE vf exp_of(vf value) {
  vf x = max_of(min_of(value, splatf(100)), splatf(-110));
  vf n = nearest(x * 1.4426950408889634f);
  vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vf p = splatf(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  vf y = ((p * r) * r + r) + 1.0f;
  // Of what is no number, any factors are as good.
  vi whole = __builtin_convertvector(n, vi), half = whole >> 1;
  return (y * (vf)((half + 127) << 23)) * (vf)(((whole - half) + 127) << 23);
}

// The rest goes through f64 and is rounded once.
INLINE vd widened(vf x) { return __builtin_convertvector(x, vd); }
INLINE vf narrowed(vd x) { return __builtin_convertvector(x, vf); }
INLINE vd min64(vd a, vd b) { return pickd(b < a, b, a); }
INLINE vd max64(vd a, vd b) { return pickd(a < b, b, a); }
INLINE vl whole64(vd n) {
  vd known = (vd)((vl)n & (n == n));
  known = max64(min64(known, 2147483647.0 + (vd){ 0 }), -2147483648.0 + (vd){ 0 });
  return __builtin_convertvector(__builtin_convertvector(known, vi), vl);
}
INLINE vd exp64(vd value) {
  vd x = max64(min64(value, 700.0 + (vd){ 0 }), -700.0 + (vd){ 0 });
  vd n = nearest64(x * M_LOG2E);
  vd r = (x - n * 6.93147180369123816490e-1) - n * 1.90821492927058770002e-10;
  vd y = 1.0 / 3628800 + (vd){ 0 };
  y = y * r + 1.0 / 362880;
  y = y * r + 1.0 / 40320;
  y = y * r + 1.0 / 5040;
  y = y * r + 1.0 / 720;
  y = y * r + 1.0 / 120;
  y = y * r + 1.0 / 24;
  y = y * r + 1.0 / 6;
  y = y * r + 1.0 / 2;
  y = y * r + 1.0;
  y = y * r + 1.0;
  return y * (vd)((whole64(n) + 1023) << 52);
}
INLINE vd log64(vd x) {
  vd m1 = (vd)(((vl)x & 0x000fffffffffffff) | (vl)(1.0 + (vd){ 0 }));
  vl high = M_SQRT2 < m1;
  vd m = pickd(high, m1 * 0.5, m1);
  vl power = (((vl)x >> 52) & 0xfff) - 1023;
  vd e = __builtin_convertvector(power, vd) + (vd)(high & (vl)(1.0 + (vd){ 0 }));
  vd s = (m - 1.0) / (m + 1.0), s2 = s * s;
  vd series = 2.0 / 15 + (vd){ 0 };
  series = series * s2 + 2.0 / 13;
  series = series * s2 + 2.0 / 11;
  series = series * s2 + 2.0 / 9;
  series = series * s2 + 2.0 / 7;
  series = series * s2 + 2.0 / 5;
  series = series * s2 + 2.0 / 3;
  series = series * s2 + 2.0;
  return e * M_LN2 + series * s;
}
INLINE vd sin64(vd x, int quarter) {
  vd n = nearest64(x * (2.0 / M_PI));
  vd r = (x - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11;
  vd r2 = r * r;
  vd sine = 1.0 / 6227020800 + (vd){ 0 };
  sine = sine * r2 + 1.0 / -39916800;
  sine = sine * r2 + 1.0 / 362880;
  sine = sine * r2 + 1.0 / -5040;
  sine = sine * r2 + 1.0 / 120;
  sine = sine * r2 + 1.0 / -6;
  sine = sine * r2 + 1.0;
  sine = sine * r;
  vd cosine = 1.0 / 479001600 + (vd){ 0 };
  cosine = cosine * r2 + 1.0 / -3628800;
  cosine = cosine * r2 + 1.0 / 40320;
  cosine = cosine * r2 + 1.0 / -720;
  cosine = cosine * r2 + 1.0 / 24;
  cosine = cosine * r2 + 1.0 / -2;
  cosine = cosine * r2 + 1.0;
  vl q = whole64(n) + quarter;
  vl flipped = (vl)pickd(0 - (q & 1), cosine, sine) ^ (vl)((q & 2) << 62);
  return (vd)flipped;
}
INLINE vd tanh64(vd x) {
  vd magnitude = (vd)((vl)x & INT64_MAX);
  vd t = exp64(magnitude * -2.0);
  vd y = (1.0 - t) / (1.0 + t);
  return pickd(magnitude < 0x1p-12, x, (vd)((vl)y | ((vl)x & INT64_MIN)));
}
CALLED vf log_of(vf x) {
  vf y = narrowed(log64(widened(x)));
  vf edge = pickf((vu)(x == 0.0f), splatf(-INFINITY), pickf((vu)(x < 0.0f), splatf(NAN), x));
  return pickf((vu)(x > 0.0f) & (vu)(x < INFINITY), y, edge);
}
INLINE vf trig(vf x, int quarter) {
  return pickf((vu)(absolute(x) < INFINITY), narrowed(sin64(widened(x), quarter)), splatf(NAN));
}
CALLED vf sin_of(vf x) { return trig(x, 0); }
CALLED vf cos_of(vf x) { return trig(x, 1); }
CALLED vf tanh_of(vf x) { return narrowed(tanh64(widened(x))); }
CALLED vf pow_of(vf x, vf y) {
  vf magnitude = absolute(x);
  vf finite = narrowed(exp64(widened(y) * log64(widened(magnitude))));
  vu rising = (vu)(y > 0.0f);
  vf at0 = pickf(rising, splatf(0), splatf(INFINITY));
  vf at_infinity = pickf(rising, splatf(INFINITY), splatf(0));
  vf positive = pickf((vu)(magnitude == 0.0f), at0, pickf((vu)(magnitude == INFINITY), at_infinity, finite));
  vf half = y * 0.5f;
  vu odd = (vu)(half != nearest(half));
  vf negative = pickf((vu)(y == nearest(y)), (vf)((vu)positive ^ (odd & 0x80000000u)),
    pickf((vu)(magnitude < INFINITY), splatf(NAN), positive));
  vu nan = (vu)(x != x) | (vu)(y != y);
  return pickf((vu)(y == 0.0f), splatf(1),
    pickf(nan, splatf(NAN), pickf((vu)(x < 0.0f), negative, positive)));
}
`;
