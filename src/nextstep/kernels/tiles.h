// Rows as left factors of products, and sums over tiles of them and of weights.
//
// Rows are prepared in the form that the format of the matrix asks for:
//   FP32  as they are
//   BF16  in tiles of 16 rows x 32 inputs
//   INT8, INT4  as 15-bit integers, 128 * high + low, in tiles of 16 rows x 64 inputs, a row's high and low
//         bytes one under the other; sums of integers are exact, so only weights lose precision
#pragma once

#include "squeezing.h"
#include "unit.h"

constexpr int64_t GROUP = 64;  // inputs of an integer tile; INT4 has a scale for each

inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t depth_of(int64_t format) { return format == BF16 ? 32 : GROUP; }

// Rows as left factor.
struct Rows {
  int64_t format, count, inputs;
  float* values;  // [count, inputs]
  char* tiles;    // none for FP32
  float* scale;   // of integer rows

  Rows(Pieces& pieces, int64_t format, int64_t count, int64_t inputs)
      : format(format), count(count), inputs(inputs) {
    values = pieces.take<float>(count * inputs);
    tiles = pieces.take<char>(format == FP32 ? 0 : tile_count() * steps() * 1024);
    scale = pieces.take<float>(count);
  }
  int64_t stacked() const { return format >= INT8 ? 2 * count : count; }
  int64_t tile_count() const { return (stacked() + 15) / 16; }
  int64_t steps() const { return (inputs + depth_of(format) - 1) / depth_of(format); }
  char* place(int64_t row, int64_t step) const {
    return tiles + ((row / 16 * steps() + step) * 16 + row % 16) * 64;
  }
  float* row(int64_t r) const { return values + r * inputs; }

  // Sets 16 values of row r from input k on in their final form, FP32 or BF16; zero behind the last input.
  void put(int64_t r, int64_t k, V v) const {
    if (format == BF16)
      store((bf16*)place(r, k / 32) + k % 32, v);
    else if (k < inputs)
      store(row(r) + k, v);
  }

  // Turns row r, whose values are there, into the form of the tiles.
  void prepare(int64_t r) const {
    const float* x = row(r);
    if (format == BF16) {
      for (int64_t k = 0; k < steps() * 32; k += 16)
        store((bf16*)place(r, k / 32) + k % 32, k < inputs ? load(x + k) : all(0.0f));
    } else if (format >= INT8) {
      V most = all(0.0f);
      for (int64_t k = 0; k < inputs; k += 16) most = _mm512_max_ps(most, _mm512_abs_ps(load(x + k)));
      const float top = _mm512_reduce_max_ps(most), limit = 127 * 128;
      const V by = all(top > 0 ? limit / top : 0.0f);
      scale[r] = top / limit;
      for (int64_t k = 0; k < steps() * GROUP; k += 16) {
        __m512i v = _mm512_setzero_si512();
        if (k < inputs) v = _mm512_cvtps_epi32(_mm512_mul_ps(load(x + k), by));
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(64)), 7);
        __m512i low = _mm512_sub_epi32(v, _mm512_slli_epi32(high, 7));
        _mm_storeu_si128((__m128i*)(place(2 * r, k / GROUP) + k % GROUP), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i*)(place(2 * r + 1, k / GROUP) + k % GROUP),
                         _mm512_cvtepi32_epi8(low));
      }
    }
  }
};

// Sums of T row tiles with both halves of a block: tiles 0..5.
template <int T>
inline void zero_sums() {
  UNIT
  ZERO_TILE(0);
  ZERO_TILE(1);
  if constexpr (T > 1) {
    ZERO_TILE(2);
    ZERO_TILE(3);
  }
  if constexpr (T > 2) {
    ZERO_TILE(4);
    ZERO_TILE(5);
  }
}

#define MULTIPLY(SUM, ROWS, WEIGHTS)      \
  if constexpr (INTEGER)                  \
    MULTIPLY_BYTES(SUM, ROWS, WEIGHTS);   \
  else                                    \
    MULTIPLY_BF16(SUM, ROWS, WEIGHTS);

// One half of a block by up to three row tiles, from b and a on: weights in tile 6, rows in 7.
#define STEP(HALF, A, B, C)          \
  READ_TILE(6, b + 1024 * HALF); \
  READ_TILE(7, a);               \
  MULTIPLY_BYTES(A, 7, 6);           \
  if constexpr (T > 1) {             \
    READ_TILE(7, a + apart);     \
    MULTIPLY_BYTES(B, 7, 6);         \
  }                                  \
  if constexpr (T > 2) {             \
    READ_TILE(7, a + 2 * apart); \
    MULTIPLY_BYTES(C, 7, 6);         \
  }

// out holds T tiles of 16 rows x 32.
template <int T>
inline void store_sums(void* out) {
  UNIT
  char* c = (char*)out;
  WRITE_SUMS(0, c, 128);
  WRITE_SUMS(1, c + 64, 128);
  if constexpr (T > 1) {
    WRITE_SUMS(2, c + 2048, 128);
    WRITE_SUMS(3, c + 2112, 128);
  }
  if constexpr (T > 2) {
    WRITE_SUMS(4, c + 4096, 128);
    WRITE_SUMS(5, c + 4160, 128);
  }
}

// Two halves of a block by one or two row tiles: sums in tiles 0..3, rows in 4 and 5, weights in 6 and 7.
// Sums go on from `sums` unless they begin. Each step asks for `lines` lines of what is read later, from
// `soon` on, into the first cache, having asked for them for the second before, or, where that is LATE, into
// the second alone.
template <int T, bool INTEGER, bool LATE>
inline void sum_part(const char* a, int64_t apart, const char* b, int64_t steps, const char* soon,
                     int64_t lines, bool begin, void* sums) {
  UNIT
  char* c = (char*)sums;
  if (begin) {
    zero_sums<T>();
  } else {
    READ_SUMS(0, c, 128);
    READ_SUMS(1, c + 64, 128);
    if constexpr (T > 1) {
      READ_SUMS(2, c + 2048, 128);
      READ_SUMS(3, c + 2112, 128);
    }
  }
  for (int64_t k = 0; k < steps; k++, a += 1024, b += 2048) {
    for (int64_t i = 0; i < lines; i++, soon += 64) {
      _mm_prefetch(soon, LATE ? _MM_HINT_T1 : _MM_HINT_T0);
      if constexpr (!LATE) _mm_prefetch(soon + FAR - AHEAD, _MM_HINT_T1);
    }
    READ_TILE(6, b);
    READ_TILE(4, a);
    READ_TILE(7, b + 1024);
    MULTIPLY(0, 4, 6)
    MULTIPLY(1, 4, 7)
    if constexpr (T > 1) {
      READ_TILE(5, a + apart);
      MULTIPLY(2, 5, 6)
      MULTIPLY(3, 5, 7)
    }
  }
  store_sums<T>(sums);
}

// The same sums from first to last step with weights that are unfolded some steps before their use.
template <int T>
inline void sum_unfolded(const char* a, int64_t apart, Unfolder& weights, int64_t steps, void* sums) {
  UNIT
  constexpr int64_t BEFORE = 2, ROOM = 4;
  alignas(64) char unfolded[ROOM * 2048];
  zero_sums<T>();
  for (int64_t k = -BEFORE; k < steps; k++) {
    if (k + BEFORE < steps) weights.take(1, unfolded + (k + BEFORE) % ROOM * 2048);
    if (k < 0) continue;
    const char* b = unfolded + k % ROOM * 2048;
    READ_TILE(6, b);
    READ_TILE(4, a);
    READ_TILE(7, b + 1024);
    MULTIPLY_BF16(0, 4, 6);
    MULTIPLY_BF16(1, 4, 7);
    if constexpr (T > 1) {
      READ_TILE(5, a + apart);
      MULTIPLY_BF16(2, 5, 6);
      MULTIPLY_BF16(3, 5, 7);
    }
    a += 1024;
  }
  store_sums<T>(sums);
}

// One step of nibbles as 16 times their value: bytes 0x?0 are what they stand for, times 16.
inline void widen(const char* from, char* to) {
  const __m512i mask = _mm512_set1_epi8((char)0xf0);
  for (int half = 0; half < 2; half++, from += 512, to += 1024)
    for (int i = 0; i < 8; i++) {
      __m512i packed = _mm512_loadu_si512(from + 64 * i);
      _mm512_store_si512(to + 64 * i, _mm512_and_si512(_mm512_slli_epi16(packed, 4), mask));
      _mm512_store_si512(to + 64 * (i + 8), _mm512_and_si512(packed, mask));
    }
}

// INT4: every group of inputs has its own scale, so its sum leaves the tiles; adds to total [rows, 32].
template <int T>
inline void sum_groups(const char* a, int64_t apart, const char* from, const bf16* scale, int64_t steps,
                       int64_t rows, float* total) {
  UNIT
  alignas(64) char weights[2][2048];
  alignas(64) int32_t part[2][T * 512];
  auto finish = [&](int64_t k) {
    const V left = load(scale + 32 * k), right = load(scale + 32 * k + 16);
    const int32_t* c = part[k % 2];
    for (int64_t r = 0; r < rows; r++, c += 64)
      for (int half = 0; half < 2; half++) {
        __m512i high = _mm512_loadu_si512(c + 16 * half), low = _mm512_loadu_si512(c + 16 * half + 32);
        V v = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 7), low));
        float* into = total + 32 * r + 16 * half;
        store(into, _mm512_fmadd_ps(v, half ? right : left, load(into)));
      }
  };
  for (int64_t k = 0; k < steps; k++, a += 1024, from += 1024) {
    for (int64_t i = 0; i < 1024; i += 64) _mm_prefetch(from + AHEAD / 2 + i, _MM_HINT_T0);
    char* b = weights[k % 2];
    widen(from, b);
    zero_sums<T>();
    STEP(0, 0, 2, 4) STEP(1, 1, 3, 5)
    store_sums<T>(part[k % 2]);
    if (k) finish(k - 1);  // a step later, so that nothing waits for the tiles
  }
  finish(steps - 1);
}
