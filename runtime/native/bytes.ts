/** C text for packed bytes: products, tables and distant loads. */

/**
 * Products, tables and distant loads of bytes: by instructions if the processor has them for this number of lanes.
 * `dpbusd` multiplies unsigned bytes by signed ones: 128 times the signed ones is subtracted. `maddubs` adds two
 * products in 16 bits, which suffice for four products of small bytes, and for two of i8 if none of the second operand
 * is -128.
 */
export const BYTES_IN_C = `
#if defined __SSE2__
#include <immintrin.h>
#elif defined __ARM_NEON
#include <arm_neon.h>
#endif
#if LANES == 16 && defined __AVX512BW__
#define WIDE(name) _mm512_##name
typedef __m512i wide;
#elif LANES == 8 && defined __AVX2__
#define WIDE(name) _mm256_##name
typedef __m256i wide;
#elif LANES == 4 && defined __SSSE3__
#define WIDE(name) _mm_##name
typedef __m128i wide;
#endif
#if defined WIDE && defined __AVX512VNNI__ && defined __AVX512VL__
#define ADDS_PRODUCTS
INLINE vu v_dot4_unsigned_add(vu sum, vu a, vu b) {
  return (vu)WIDE(dpbusd_epi32)((wide)sum, (wide)a, (wide)b);
}
INLINE vu v_dot4_unsigned(vu a, vu b) { return v_dot4_unsigned_add((vu){ 0 }, a, b); }
INLINE vu v_dot4(vu a, vu b) {
  return v_dot4_unsigned(a ^ 0x80808080u, b) - v_dot4_unsigned(splat(0x80808080u), b);
}
#elif defined WIDE
#if LANES == 16
#define SIGNED(b, a) _mm512_mask_sub_epi8((wide)b, _mm512_movepi8_mask((wide)a), _mm512_setzero_si512(), (wide)b)
#else
#define SIGNED(b, a) WIDE(sign_epi8)((wide)b, (wide)a)
#endif
typedef int16_t shorts __attribute__((vector_size(4 * LANES)));
INLINE vu v_dot4_unsigned(vu a, vu b) {
  shorts y = (shorts)b;
  return (vu)WIDE(madd_epi16)((wide)(a & 0x00ff00ffu), (wide)(y << 8 >> 8)) + (vu)WIDE(madd_epi16)((wide)(a >> 8 & 0x00ff00ffu), (wide)(y >> 8));
}
INLINE vu v_dot4(vu a, vu b) {
  wide pairs = WIDE(maddubs_epi16)(WIDE(abs_epi8)((wide)a), SIGNED(b, a));
  return (vu)WIDE(madd_epi16)(pairs, (wide)splat(0x00010001u));
}
#elif LANES == 4 && defined __ARM_FEATURE_DOTPROD
INLINE vu v_dot4(vu a, vu b) { return (vu)vdotq_s32((int32x4_t){ 0 }, (int8x16_t)a, (int8x16_t)b); }
#define BY_SIGNED
#else
#define BY_SIGNED
INLINE vi byte_of(vu x, int i) { return (vi)(x << (24 - 8 * i)) >> 24; }
INLINE vu v_dot4(vu a, vu b) {
  vi sum = { 0 };
  for (int i = 0; i < 4; i++) sum += byte_of(a, i) * byte_of(b, i);
  return (vu)sum;
}
#endif
// Loads of lanes that are some bytes apart. Compilers would assemble a vector in memory.
#define AT(l) *(const bytes *)ON(p, (uint64_t)(l) * apart)
#if defined WIDE && defined __SSE4_1__
#define FOUR(l) _mm_insert_epi32(_mm_insert_epi32(_mm_insert_epi32(_mm_cvtsi32_si128(AT(l)), AT(l + 1), 1), AT(l + 2), 2), AT(l + 3), 3)
#define EIGHT(l) _mm256_inserti128_si256(_mm256_castsi128_si256(FOUR(l)), FOUR(l + 4), 1)
INLINE vu strided(const word *p, uint64_t apart) {
#if LANES == 4
  return (vu)FOUR(0);
#elif LANES == 8
  return (vu)EIGHT(0);
#else
  return (vu)_mm512_inserti64x4(_mm512_castsi256_si512(EIGHT(0)), EIGHT(8), 1);
#endif
}
#else
INLINE vu strided(const word *p, uint64_t apart) {
  vu r;
  for (int l = 0; l < LANES; l++) r[l] = AT(l);
  return r;
}
#endif
// The same at a byte of n words: checked once, or per lane if some lane is out of bounds or its index wraps.
INLINE vu strided_bytes(const word *a, u n, u at, u apart) {
  uint64_t last = at + (LANES - 1) * (uint64_t)apart + 3;
  return last >> 32 == 0 && last < 4 * (uint64_t)n ? strided(ON(a, at), apart) : gather_bytes(a, n, at + IOTA * apart);
}
#ifdef BY_SIGNED
INLINE vu v_dot4_unsigned(vu a, vu b) { return v_dot4(a ^ 0x80808080u, b) + (v_dot4(splat(0x01010101u), b) << 7); }
#endif
#ifndef ADDS_PRODUCTS
INLINE vu v_dot4_unsigned_add(vu sum, vu a, vu b) { return sum + v_dot4_unsigned(a, b); }
#endif
#if defined WIDE && !defined ADDS_PRODUCTS
INLINE vu sum_of_pairs(wide pairs) { return (vu)WIDE(madd_epi16)(pairs, (wide)splat(0x00010001u)); }
INLINE vu v_dot4_small(vu a, vu b) { return sum_of_pairs(WIDE(maddubs_epi16)((wide)a, (wide)b)); }
INLINE vu v_dot4_small_add(vu sum, vu a, vu b) { return sum + v_dot4_small(a, b); }
INLINE wide pairs_of_two(vu a, vu b, vu c, vu d) {
  return WIDE(add_epi16)(WIDE(maddubs_epi16)((wide)a, (wide)b), WIDE(maddubs_epi16)((wide)c, (wide)d));
}
INLINE vu v_dot8_small_add(vu sum, vu a, vu b, vu c, vu d) { return sum + sum_of_pairs(pairs_of_two(a, b, c, d)); }
INLINE vu v_dot16_tiny_add(vu sum, vu a, vu b, vu c, vu d, vu e, vu f, vu g, vu h) {
  return sum + sum_of_pairs(WIDE(add_epi16)(pairs_of_two(a, b, c, d), pairs_of_two(e, f, g, h)));
}
#else
#ifdef BY_SIGNED
INLINE vu v_dot4_small(vu a, vu b) { return v_dot4(a, b); }
INLINE vu v_dot4_small_add(vu sum, vu a, vu b) { return sum + v_dot4(a, b); }
#else
INLINE vu v_dot4_small(vu a, vu b) { return v_dot4_unsigned(a, b); }
INLINE vu v_dot4_small_add(vu sum, vu a, vu b) { return v_dot4_unsigned_add(sum, a, b); }
#endif
INLINE vu v_dot8_small_add(vu sum, vu a, vu b, vu c, vu d) { return v_dot4_small_add(v_dot4_small_add(sum, a, b), c, d); }
INLINE vu v_dot16_tiny_add(vu sum, vu a, vu b, vu c, vu d, vu e, vu f, vu g, vu h) {
  return v_dot8_small_add(v_dot8_small_add(sum, a, b, c, d), e, f, g, h);
}
#endif
#define v_dot4_tiny v_dot4_small
#if defined WIDE
#if LANES == 4
#define TABLE(x) (x)
#elif LANES == 8
#define TABLE(x) WIDE(broadcastsi128_si256)(x)
#else
#define TABLE(x) WIDE(broadcast_i32x4)(x)
#endif
INLINE vu v_lookup(vu at, u a, u b, u c, u d) {
  __m128i table = _mm_setr_epi32(a, b, c, d);
  return (vu)WIDE(shuffle_epi8)(TABLE(table), (wide)(at & 0x0f0f0f0fu));
}
#elif LANES == 4 && defined __aarch64__
INLINE vu v_lookup(vu at, u a, u b, u c, u d) {
  uint32x4_t table = { a, b, c, d };
  return (vu)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)(at & 0x0f0f0f0fu));
}
#else
INLINE vu v_lookup(vu at, u a, u b, u c, u d) {
  const u table[4] = { a, b, c, d };
  vu r = { 0 };
  for (int l = 0; l < LANES; l++) {
    for (int shift = 0; shift < 32; shift += 8) {
      u n = at[l] >> shift & 15;
      r[l] |= (table[n / 4] >> n % 4 * 8 & 255) << shift;
    }
  }
  return r;
}
#endif
// An entry of a table of 16 floats: with 16 lanes by one instruction, else the same value from bytes.
#if LANES == 16 && defined WIDE
#define v_entry(value, at, shift, ...) ((vf)_mm512_permutexvar_ps((wide)((at) >> shift), (__m512)(vf){ __VA_ARGS__ }))
#else
#define v_entry(value, ...) (value)
#endif
`;
