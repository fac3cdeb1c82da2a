// The unit that multiplies tiles: AMX, or vectors of AVX-512 that compute the same to the last bit.
//
// A tile is 16 rows of 64 bytes. Tiles 0..5 hold sums, or factors where fewer sums are needed; 6 and 7 hold factors.
//   bf16   sums[r][n] += sum over k of rows[r][2k] * weights[k][n][0] + sum over k of rows[r][2k + 1] * weights[k][n][1]
//   bytes  sums[r][n] += sum over k of rows[r][4k..4k+3] * weights[k][n][0..3], as integers
// with sums over k from first to last, fused, numbers too small for a normal one taken as zero (Intel's
// description of TDPBF16PS).
#pragma once

#include "common.h"

// While it lives numbers too small for a normal one are zero to all instructions of this thread.
struct Flushing {
  const unsigned before = _mm_getcsr();
  Flushing() { _mm_setcsr(before | 0x8040); }
  ~Flushing() { _mm_setcsr(before); }
};

#ifdef __AMX_TILE__

#define UNIT

// The unit of this thread while it lives. Rows of left factors and sums are as few as there are.
struct Tiles {
  struct alignas(64) Shape {
    uint8_t palette = 1, start = 0, none[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {};
  } shape;
  // Tiles from `matrix` up to `behind` hold weights.
  Tiles(int64_t rows, int matrix, int behind) {
    const uint8_t few = std::min<int64_t>(rows, 16);
    for (int i = 0; i < 8; i++) shape.rows[i] = i >= matrix && i < behind ? 16 : few;
    asm volatile("ldtilecfg %0" : : "m"(shape) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Flushing flushing;
};

// Tiles are read and written in words of their own, because g++ believes that its intrinsics touch no
// memory and moves or drops what was stored for them.
#define READ_SUMS(TILE, FROM, STRIDE) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #TILE : : "r"(FROM), "r"(int64_t(STRIDE)) : "memory")
#define WRITE_SUMS(TILE, TO, STRIDE) \
  asm volatile("tilestored %%tmm" #TILE ", (%0,%1,1)" : : "r"(TO), "r"(int64_t(STRIDE)) : "memory")
#define READ_TILE(TILE, FROM) READ_SUMS(TILE, FROM, 64)
#define ZERO_TILE(TILE) _tile_zero(TILE)
#define MULTIPLY_BF16(SUM, ROWS, WEIGHTS) _tile_dpbf16ps(SUM, ROWS, WEIGHTS)
#define MULTIPLY_BYTES(SUM, ROWS, WEIGHTS) _tile_dpbssd(SUM, ROWS, WEIGHTS)

#else

struct Unit {
  alignas(64) char sums[6][1024];
  const char* factors[8];  // where they lie
  int64_t rows;            // of sums
};

inline Unit& unit_of_thread() {
  static thread_local Unit unit;
  return unit;
}

#define UNIT Unit& unit = unit_of_thread();

struct Tiles {
  Tiles(int64_t rows, int, int) { unit_of_thread().rows = std::min<int64_t>(rows, 16); }
  Flushing flushing;
};

// R rows of sums. The instruction takes bytes of rows without sign, so 128 is added to each, and what that
// adds to sums, `more`, is taken off again.
template <int R>
inline void add_bytes(const char* rows, const char* weights, __m512i more, char* sums) {
  alignas(64) int32_t a[R][16];
  __m512i sum[R];
  for (int r = 0; r < R; r++) {
    const __m512i row = _mm512_loadu_si512(rows + 64 * r);
    _mm512_store_si512(a[r], _mm512_xor_si512(row, _mm512_set1_epi8((char)0x80)));
    sum[r] = _mm512_sub_epi32(_mm512_load_si512(sums + 64 * r), more);
  }
  for (int k = 0; k < 16; k++) {
    const __m512i b = _mm512_loadu_si512(weights + 64 * k);
    for (int r = 0; r < R; r++) sum[r] = _mm512_dpbusd_epi32(sum[r], _mm512_set1_epi32(a[r][k]), b);
  }
  for (int r = 0; r < R; r++) _mm512_store_si512(sums + 64 * r, sum[r]);
}

template <int R>
inline void add_bf16(const char* rows, const char* weights, char* sums) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  alignas(64) float a[R][2][16];
  V even[R], odd[R];
  for (int r = 0; r < R; r++) {
    const __m512i row = _mm512_loadu_si512(rows + 64 * r);
    _mm512_store_ps(a[r][0], (V)_mm512_slli_epi32(row, 16));
    _mm512_store_ps(a[r][1], (V)_mm512_and_si512(row, upper));
    even[r] = odd[r] = all(0.0f);
  }
  for (int k = 0; k < 16; k++) {
    const __m512i b = _mm512_loadu_si512(weights + 64 * k);
    const V first = (V)_mm512_slli_epi32(b, 16), second = (V)_mm512_and_si512(b, upper);
    for (int r = 0; r < R; r++) {
      even[r] = _mm512_fmadd_ps(all(a[r][0][k]), first, even[r]);
      odd[r] = _mm512_fmadd_ps(all(a[r][1][k]), second, odd[r]);
    }
  }
  for (int r = 0; r < R; r++) {
    float* sum = (float*)(sums + 64 * r);
    store(sum, _mm512_add_ps(load(sum), _mm512_add_ps(even[r], odd[r])));
  }
}

template <int R, bool BYTES>
inline void add_tile(const char* rows, const char* weights, __m512i more, char* sums) {
  if constexpr (BYTES)
    add_bytes<R>(rows, weights, more, sums);
  else
    add_bf16<R>(rows, weights, sums);
}

template <bool BYTES>
inline void multiply(const Unit& unit, int sum, int rows, int weights) {
  const char *a = unit.factors[rows], *b = unit.factors[weights];
  char* c = (char*)unit.sums[sum];
  __m512i more = _mm512_setzero_si512();
  if constexpr (BYTES)
    for (int k = 0; k < 16; k++)
      more = _mm512_dpbusd_epi32(more, _mm512_set1_epi8((char)0x80), _mm512_loadu_si512(b + 64 * k));
  for (int64_t left = unit.rows; left > 0;) {
    const int64_t n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    if (n == 8) add_tile<8, BYTES>(a, b, more, c);
    if (n == 4) add_tile<4, BYTES>(a, b, more, c);
    if (n == 2) add_tile<2, BYTES>(a, b, more, c);
    if (n == 1) add_tile<1, BYTES>(a, b, more, c);
    a += 64 * n, c += 64 * n, left -= n;
  }
}

inline void copy_sums(int64_t rows, const char* from, int64_t apart, char* to, int64_t there) {
  for (int64_t r = 0; r < rows; r++)
    _mm512_storeu_si512(to + r * there, _mm512_loadu_si512(from + r * apart));
}

#define READ_TILE(TILE, FROM) unit.factors[TILE] = (FROM)
#define READ_SUMS(TILE, FROM, STRIDE) copy_sums(unit.rows, FROM, STRIDE, unit.sums[TILE], 64)
#define WRITE_SUMS(TILE, TO, STRIDE) copy_sums(unit.rows, unit.sums[TILE], 64, TO, STRIDE)
#define ZERO_TILE(TILE) std::fill_n(unit.sums[TILE], 64 * unit.rows, 0)
#define MULTIPLY_BF16(SUM, ROWS, WEIGHTS) multiply<false>(unit, SUM, ROWS, WEIGHTS)
#define MULTIPLY_BYTES(SUM, ROWS, WEIGHTS) multiply<true>(unit, SUM, ROWS, WEIGHTS)

#endif
