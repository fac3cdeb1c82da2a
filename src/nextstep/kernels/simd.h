// Vectors of 16 numbers on every processor: one register of AVX-512, two of AVX2, four of NEON.
//
// What is written with them computes the same to the last bit everywhere: each operation rounds once, by IEEE 754,
// and every sum over places has one order. Arithmetic is the compiler's (vector extensions of GCC and Clang); what
// it has no words for stands once for each instruction set in the next part.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int BYTES = 64, ROWS = 8, FEW_SUMS = 16;
#elif defined(__AVX2__)
#include <immintrin.h>
constexpr int BYTES = 32, ROWS = 6, FEW_SUMS = 8;
#elif defined(__ARM_NEON)
#include <arm_neon.h>
constexpr int BYTES = 16, ROWS = 6, FEW_SUMS = 16;
#else
#error "these kernels need AVX-512, AVX2 with FMA, or NEON"
#endif
// ROWS: rows whose sums a product holds in registers together, as many as those allow; FEW_SUMS: sums that leave room
// for all else.

constexpr int REGS = 64 / BYTES, LANES = BYTES / 4;
using bf16 = uint16_t;

#define SIMD static inline __attribute__((always_inline))

#define REGISTER(NAME, TYPE, SIZE) typedef TYPE NAME __attribute__((vector_size(SIZE)))
REGISTER(RegF, float, BYTES);
REGISTER(RegI, int32_t, BYTES);
REGISTER(RegU, uint32_t, BYTES);
REGISTER(RegS, int16_t, BYTES);
REGISTER(RegB, uint8_t, BYTES);
REGISTER(HalfRegU, uint16_t, BYTES / 2);
REGISTER(HalfRegB, int8_t, BYTES / 2);
REGISTER(Quarter, float, 16);  // of a vector of 16
#undef REGISTER

template <typename T>
SIMD T read(const void* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename T>
SIMD void write(void* p, T v) {
  std::memcpy(p, &v, sizeof v);
}

// ---- What each instruction set says in its own words.

#if defined(__AVX512F__)

SIMD RegF fused(RegF a, RegF b, RegF c) { return _mm512_fmadd_ps(a, b, c); }
SIMD RegU widen(HalfRegU v) { return (RegU)_mm512_cvtepu16_epi32((__m256i)v); }
SIMD RegS widen(HalfRegB v) { return (RegS)_mm512_cvtepi8_epi16((__m256i)v); }
SIMD HalfRegU narrow(RegU v) { return (HalfRegU)_mm512_cvtepi32_epi16((__m512i)v); }
SIMD Quarter quarter(const RegF* v, int i) {
  const __m512 own = v[0];
  return i == 0   ? _mm512_castps512_ps128(own)
         : i == 1 ? _mm512_extractf32x4_ps(own, 1)
         : i == 2 ? _mm512_extractf32x4_ps(own, 2)
                  : _mm512_extractf32x4_ps(own, 3);
}
SIMD RegF interleave_low(RegF a, RegF b) { return _mm512_unpacklo_ps(a, b); }
SIMD RegF interleave_high(RegF a, RegF b) { return _mm512_unpackhi_ps(a, b); }
SIMD RegB interleave_low(RegB a, RegB b) { return (RegB)_mm512_unpacklo_epi8((__m512i)a, (__m512i)b); }
SIMD RegB interleave_high(RegB a, RegB b) { return (RegB)_mm512_unpackhi_epi8((__m512i)a, (__m512i)b); }
SIMD RegB table_lookup(RegB table, RegB at) { return (RegB)_mm512_shuffle_epi8((__m512i)table, (__m512i)at); }
SIMD RegI pair_products(RegI sum, RegS a, RegS b) {
  return (RegI)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
SIMD RegI pair_sums(RegI a, RegI b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return (RegI)_mm512_permutex2var_epi32((__m512i)a, even, (__m512i)b) +
         (RegI)_mm512_permutex2var_epi32((__m512i)a, odd, (__m512i)b);
}

#elif defined(__AVX2__)

SIMD RegF fused(RegF a, RegF b, RegF c) { return _mm256_fmadd_ps(a, b, c); }
SIMD RegU widen(HalfRegU v) { return (RegU)_mm256_cvtepu16_epi32((__m128i)v); }
SIMD RegS widen(HalfRegB v) { return (RegS)_mm256_cvtepi8_epi16((__m128i)v); }
SIMD HalfRegU narrow(RegU v) { return __builtin_convertvector(v, HalfRegU); }
SIMD Quarter quarter(const RegF* v, int i) {
  return i % 2 ? _mm256_extractf128_ps(v[i / 2], 1) : _mm256_castps256_ps128(v[i / 2]);
}
SIMD RegF interleave_low(RegF a, RegF b) { return _mm256_unpacklo_ps(a, b); }
SIMD RegF interleave_high(RegF a, RegF b) { return _mm256_unpackhi_ps(a, b); }
SIMD RegB interleave_low(RegB a, RegB b) { return (RegB)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b); }
SIMD RegB interleave_high(RegB a, RegB b) { return (RegB)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b); }
SIMD RegB table_lookup(RegB table, RegB at) { return (RegB)_mm256_shuffle_epi8((__m256i)table, (__m256i)at); }
SIMD RegI pair_products(RegI sum, RegS a, RegS b) {
#ifdef __AVXVNNI__
  return (RegI)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#else
  return sum + (RegI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
SIMD RegI pair_sums(RegI a, RegI b) {
  return (RegI)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)a, (__m256i)b), 0xd8);
}

#else

SIMD RegF fused(RegF a, RegF b, RegF c) { return vfmaq_f32(c, a, b); }
SIMD RegU widen(HalfRegU v) { return vmovl_u16(v); }
SIMD RegS widen(HalfRegB v) { return vmovl_s8(v); }
SIMD HalfRegU narrow(RegU v) { return vmovn_u32(v); }
SIMD Quarter quarter(const RegF* v, int i) { return v[i]; }
SIMD RegF interleave_low(RegF a, RegF b) { return vzip1q_f32(a, b); }
SIMD RegF interleave_high(RegF a, RegF b) { return vzip2q_f32(a, b); }
SIMD RegB interleave_low(RegB a, RegB b) { return vzip1q_u8(a, b); }
SIMD RegB interleave_high(RegB a, RegB b) { return vzip2q_u8(a, b); }
SIMD RegB table_lookup(RegB table, RegB at) { return vqtbl1q_u8(table, at); }
SIMD RegI pair_products(RegI sum, RegS a, RegS b) {
  const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b)), high = vmull_high_s16(a, b);
  return vaddq_s32(sum, vpaddq_s32(low, high));
}
SIMD RegI pair_sums(RegI a, RegI b) { return vpaddq_s32(a, b); }

#endif

// While it lives numbers too small for a normal one are zero to all instructions of this thread.
struct FlushDenormals {
#if defined(__ARM_NEON)
  static uint64_t get() {
    uint64_t is;
    asm volatile("mrs %0, fpcr" : "=r"(is));
    return is;
  }
  static void set(uint64_t to) { asm volatile("msr fpcr, %0" : : "r"(to) : "memory"); }
  static constexpr uint64_t BITS = 1 << 24;
#else
  static unsigned get() { return _mm_getcsr(); }
  static void set(unsigned to) { _mm_setcsr(to); }
  static constexpr unsigned BITS = 0x8040;
#endif
  const decltype(BITS) before = get();
  FlushDenormals() { set(before | BITS); }
  ~FlushDenormals() { set(before); }
};

// ---- From here on there is one source.

#define EACH(TYPE, EXPRESSION)                             \
  TYPE o;                                                  \
  _Pragma("GCC unroll 4") for (int i = 0; i < REGS; i++)  \
      o.p[i] = EXPRESSION;                                 \
  return o

struct I {  // 16 integers of 32 bits
  RegI p[REGS];
};
struct V {  // 16 floats
  RegF p[REGS];
};

SIMD V operator+(V a, V b) { EACH(V, a.p[i] + b.p[i]); }
SIMD V operator-(V a, V b) { EACH(V, a.p[i] - b.p[i]); }
SIMD V operator*(V a, V b) { EACH(V, a.p[i] * b.p[i]); }
SIMD V operator/(V a, V b) { EACH(V, a.p[i] / b.p[i]); }
SIMD V operator-(V a) { EACH(V, -a.p[i]); }
SIMD I operator+(I a, I b) { EACH(I, a.p[i] + b.p[i]); }
SIMD I operator-(I a, I b) { EACH(I, a.p[i] - b.p[i]); }
SIMD I operator&(I a, I b) { EACH(I, a.p[i] & b.p[i]); }
SIMD I operator|(I a, I b) { EACH(I, a.p[i] | b.p[i]); }
SIMD I operator<(I a, I b) { EACH(I, a.p[i] < b.p[i]); }  // all bits, or none
SIMD I operator<<(I a, int by) { EACH(I, a.p[i] << by); }
SIMD I operator>>(I a, int by) { EACH(I, a.p[i] >> by); }
SIMD I unsigned_shift(I a, int by) { EACH(I, (RegI)((RegU)a.p[i] >> by)); }
SIMD I bits(V v) { EACH(I, (RegI)v.p[i]); }
SIMD V as_floats(I v) { EACH(V, (RegF)v.p[i]); }
SIMD V to_float(I v) { EACH(V, __builtin_convertvector(v.p[i], RegF)); }
SIMD I select(I mask, I a, I b) { EACH(I, (a.p[i] & mask.p[i]) | (b.p[i] & ~mask.p[i])); }

SIMD V broadcast(float x) { EACH(V, x - RegF{}); }
SIMD I broadcast_int(int32_t x) { EACH(I, x - RegI{}); }
// Of a vector: its first numbers from p on.
SIMD RegF part(const float* p) { return read<RegF>(p); }
SIMD RegF part(const bf16* p) { return (RegF)(widen(read<HalfRegU>(p)) << 16); }
SIMD V load(const float* p) { EACH(V, part(p + i * BYTES / 4)); }
SIMD I load(const int32_t* p) { EACH(I, read<RegI>(p + i * BYTES / 4)); }
SIMD V load(const bf16* p) {
  EACH(V, part(p + i * BYTES / 4));
}
SIMD void store(float* p, V v) {
  for (int i = 0; i < REGS; i++) write(p + i * BYTES / 4, v.p[i]);
}
SIMD void store(int32_t* p, I v) {
  for (int i = 0; i < REGS; i++) write(p + i * BYTES / 4, v.p[i]);
}
SIMD void store(int16_t* p, I v) {
  for (int i = 0; i < REGS; i++) write(p + i * BYTES / 4, narrow((RegU)v.p[i]));
}

// a * b + c, rounded once.
SIMD V fma(V a, V b, V c) { EACH(V, fused(a.p[i], b.p[i], c.p[i])); }
// The second where one of both is no number.
SIMD V vmin(V a, V b) { EACH(V, a.p[i] < b.p[i] ? a.p[i] : b.p[i]); }
SIMD V vmax(V a, V b) { EACH(V, a.p[i] > b.p[i] ? a.p[i] : b.p[i]); }
SIMD V magnitude(V v) { return as_floats(bits(v) & broadcast_int(0x7fffffff)); }
// To the nearest whole number, halves to even; for numbers below 2^22.
constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: behind its point there is no place for a bit
SIMD V round_nearest(V v) { return v + broadcast(MAGIC) - broadcast(MAGIC); }
SIMD I to_int(V v) { return bits(v + broadcast(MAGIC)) - bits(broadcast(MAGIC)); }

// Numbers as bf16 in the upper halves: to nearest, halves to even; those too small for a normal one become zero.
SIMD I rounded_bits(V v) {
  const I own = bits(v), size = own & broadcast_int(0x7fffffff), last = unsigned_shift(own, 16) & broadcast_int(1);
  I up = own + broadcast_int(0x7fff) + last;
  up = select(broadcast_int(0x7f800000) < size, own | broadcast_int(0x400000), up);
  return select(size < broadcast_int(0x800000), own & broadcast_int(0x80000000), up);
}
SIMD V rounded(V v) { return as_floats(rounded_bits(v) & broadcast_int(0xffff0000)); }
SIMD void store(bf16* p, V v) {
  store((int16_t*)p, unsigned_shift(rounded_bits(v), 16));
}

// Of the first n places; the others are zero, or stay as they are.
template <typename T>
SIMD V load(const T* p, int64_t n) {
  if (n >= 16) return load(p);
  T own[16] = {};
  std::memcpy(own, p, n * sizeof(T));
  return load(own);
}
template <typename T>
SIMD void store(T* p, V v, int64_t n) {
  if (n >= 16) return store(p, v);
  T own[16];
  store(own, v);
  std::memcpy(p, own, n * sizeof(T));
}
// Places before n as they are, those of another vector behind; zero unless one is given.
SIMD V first_n(int64_t n, V v, V behind = V{}) {
  static const int32_t places[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return n >= 16 ? v : as_floats(select(load(places) < broadcast_int(n), bits(v), bits(behind)));
}

SIMD float reduce_sum(V v) {
  const Quarter q = (quarter(v.p, 0) + quarter(v.p, 2)) + (quarter(v.p, 1) + quarter(v.p, 3));
  return (q[0] + q[2]) + (q[1] + q[3]);
}
SIMD float reduce_max(V v) {
  float own[16], top;
  store(own, v), top = own[0];
  for (float x : own) top = x > top ? x : top;
  return top;
}
// Each place of the first and second half of quarters, in turns, added: see `reduce_sums`.
SIMD V add_interleaved(V a, V b) { EACH(V, interleave_low(a.p[i], b.p[i]) + interleave_high(a.p[i], b.p[i])); }
// Sums of 16 vectors, one in each place.
SIMD V reduce_sums(const V in[16]) {
  V a[8], b[4];
  for (int i = 0; i < 8; i++) a[i] = add_interleaved(in[i], in[i + 8]);
  for (int i = 0; i < 4; i++) b[i] = add_interleaved(a[i], a[i + 4]);
  // Quarters of b[i] hold what is left of vectors i, i + 4, i + 8, i + 12.
  float out[16];
  for (int i = 0; i < 4; i++) {
    const Quarter q = (quarter(b[i].p, 0) + quarter(b[i].p, 1)) + (quarter(b[i].p, 2) + quarter(b[i].p, 3));
    for (int j = 0; j < 4; j++) out[i + 4 * j] = q[j];
  }
  return load(out);
}

// exp to 2 ulp (Cephes' polynomial for the rest); what is no number stays so.
SIMD V vexp(V x) {
  x = vmax(broadcast(-87.0f), vmin(broadcast(88.0f), x));
  const V n = round_nearest(x * broadcast(1.44269504f));
  V r = fma(-n, broadcast(0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  V p = broadcast(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                  5.0000001201e-1f, 1.0f, 1.0f})
    p = fma(p, r, broadcast(c));
  return p * as_floats((to_int(n) + broadcast_int(127)) << 23);  // * 2^n
}

SIMD V silu(V x) { return x / (broadcast(1.0f) + vexp(-x)); }

// ---- Products of integers: rows of 15 bits by weights of 8 bits, 4 inputs of 16 outputs at a time.

// P vectors of outputs each: of every output two sums that belong together.
template <int P>
struct DotSums {
  RegI p[2 * P];
};

#if defined(__ARM_FEATURE_DOTPROD)

// Rows are 128 * high + low, 4 bytes of high before 4 of low, and their sums stand apart.
SIMD void store_row(int16_t* p, I v) {
  const I high = (v + broadcast_int(64)) >> 7, low = v - (high << 7);
  for (int i = 0; i < 16; i++) {
    int8_t* four = (int8_t*)p + i / 4 * 8 + i % 4;
    four[0] = high.p[i / 4][i % 4], four[4] = low.p[i / 4][i % 4];
  }
}
template <int P>
struct WeightLine {  // outputs x 4 inputs, output by output
  int8x16_t p[P];
};
template <int P>
SIMD WeightLine<P> line(const char* from) {
  return read<WeightLine<P>>(from);
}
template <int P>
SIMD void unpack_nibbles(const char* from, WeightLine<P>& first, WeightLine<P>& second) {
  second = line<P>(from);
  _Pragma("GCC unroll 8") for (int i = 0; i < P; i++) {
    first.p[i] = vshlq_n_s8(second.p[i], 4);
    second.p[i] = vandq_s8(second.p[i], vdupq_n_s8(-16));
  }
}
template <int P>
SIMD void add_dot_products(DotSums<P>& sum, const int16_t* row, const WeightLine<P>& by) {
  const int8x16_t high = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)row));
  const int8x16_t low = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)row + 1));
  _Pragma("GCC unroll 8") for (int i = 0; i < P; i++) {
    sum.p[i] = vdotq_s32(sum.p[i], by.p[i], high);
    sum.p[i + P] = vdotq_s32(sum.p[i + P], by.p[i], low);
  }
}
template <int P>
SIMD RegI total(const DotSums<P>& sum, int i) {
  return (sum.p[i] << 7) + sum.p[i + P];
}

#else

SIMD void store_row(int16_t* p, I v) { store(p, v); }
template <int P>
struct WeightLine {
  RegS p[2 * P];
};
template <int P>
SIMD WeightLine<P> line(const char* from) {
  WeightLine<P> o;
  _Pragma("GCC unroll 8") for (int i = 0; i < 2 * P; i++)
    o.p[i] = widen(read<HalfRegB>(from + i * BYTES / 2));
  return o;
}
// Of nibbles, the first in the lower halves of the bytes; as 16 times their value.
template <int P>
SIMD void unpack_nibbles(const char* from, WeightLine<P>& first, WeightLine<P>& second) {
  second = line<P>(from);
  _Pragma("GCC unroll 8") for (int i = 0; i < 2 * P; i++) {
    first.p[i] = (second.p[i] << 12) >> 8;
    second.p[i] &= -16;
  }
}
// Adds 4 inputs of a row by a line.
template <int P>
SIMD void add_dot_products(DotSums<P>& sum, const int16_t* row, const WeightLine<P>& by) {
  typedef int64_t Wide __attribute__((vector_size(BYTES)));
  const RegS x = (RegS)(read<int64_t>(row) - Wide{});
  _Pragma("GCC unroll 8") for (int i = 0; i < 2 * P; i++) sum.p[i] = pair_products(sum.p[i], x, by.p[i]);
}
template <int P>
SIMD RegI total(const DotSums<P>& sum, int i) {
  return pair_sums(sum.p[2 * i], sum.p[2 * i + 1]);
}

#endif
