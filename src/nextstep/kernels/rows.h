// Rows as left factors of products, in the form that the format of the matrix asks for:
//
//   FP32  as they are
//   BF16  rounded; for matrix units in tiles of 16 rows x 32 inputs
//   INT8, INT4  as 15-bit integers; for matrix units as 128 * high + low in tiles of 16 rows x 64 inputs, a row's
//         high and low bytes one under the other. Sums of integers are exact, so only weights lose precision
#pragma once

#include "lossless_bf16.h"

constexpr int64_t QUANT_GROUP = 64;  // inputs of an integer step; INT4 has a scale for each

inline int64_t depth_of(int64_t format) { return format >= INT8 ? QUANT_GROUP : 32; }

struct Activations {
  int64_t format, count, inputs, apart;  // apart: from row to row
  float* values;                         // [count, apart]
  char* factors;                         // integers, or tiles
  float* scale;                          // of integer rows

  Activations(ScratchAllocator& pieces, int64_t format, int64_t count, int64_t inputs)
      : format(format), count(count), inputs(inputs), apart(up(inputs, 32)) {
    values = pieces.allocate<float>(count * apart);
    factors = pieces.allocate<char>(factor_bytes());
    scale = pieces.allocate<float>(count);
  }
  int64_t steps() const { return up(inputs, depth_of(format)) / depth_of(format); }
  float* row(int64_t r) const { return values + r * apart; }

  // Largest size of row r, whose scale is set; returns what its values are multiplied with.
  V integer_scale(int64_t r) const {
    V peak = broadcast(0.0f);
    for (int64_t k = 0; k < inputs; k += 16) peak = vmax(peak, magnitude(load(row(r) + k)));
    const float top = reduce_max(peak), limit = 127 * 128;
    scale[r] = top / limit;
    return broadcast(top > 0 ? limit / top : 0.0f);
  }

#ifdef NEXTSTEP_TILES
  int64_t stacked() const { return format >= INT8 ? 2 * count : count; }
  int64_t tile_count() const { return up(stacked(), 16) / 16; }
  int64_t factor_bytes() const { return format == FP32 ? 0 : tile_count() * steps() * 1024; }
  char* place(int64_t row, int64_t step) const {
    return factors + ((row / 16 * steps() + step) * 16 + row % 16) * 64;
  }

  // Sets 16 values of row r from input k on in their final form, FP32 or BF16; zero behind the last input.
  void put(int64_t r, int64_t k, V v) const {
    if (format == BF16)
      store((bf16*)place(r, k / 32) + k % 32, v);
    else if (k < inputs)
      store(row(r) + k, v);
  }

  // Turns row r, whose values are there, into its form.
  void prepare(int64_t r) const {
    if (format == BF16) {
      for (int64_t k = 0; k < steps() * 32; k += 16) put(r, k, k < inputs ? load(row(r) + k) : broadcast(0.0f));
    } else if (format >= INT8) {
      const V by = integer_scale(r);
      for (int64_t k = 0; k < steps() * QUANT_GROUP; k += 16) {
        const I v = k < inputs ? to_int(load(row(r) + k) * by) : broadcast_int(0);
        const I high = (v + broadcast_int(64)) >> 7, low = v - (high << 7);
        _mm_storeu_si128((__m128i*)(place(2 * r, k / QUANT_GROUP) + k % QUANT_GROUP),
                         _mm512_cvtepi32_epi8((__m512i)high.p[0]));
        _mm_storeu_si128((__m128i*)(place(2 * r + 1, k / QUANT_GROUP) + k % QUANT_GROUP),
                         _mm512_cvtepi32_epi8((__m512i)low.p[0]));
      }
    }
  }
#else
  int64_t factor_bytes() const { return format >= INT8 ? 2 * count * steps() * QUANT_GROUP : 0; }
  int16_t* integers(int64_t r) const { return (int16_t*)factors + r * steps() * QUANT_GROUP; }

  void put(int64_t r, int64_t k, V v) const { store(row(r) + k, format == BF16 ? rounded(v) : v); }

  void prepare(int64_t r) const {
    if (format == BF16) {
      for (int64_t k = 0; k < apart; k += 16) put(r, k, k < inputs ? load(row(r) + k) : broadcast(0.0f));
    } else if (format >= INT8) {
      const V by = integer_scale(r);
      for (int64_t k = 0; k < steps() * QUANT_GROUP; k += 16)
        store_row(integers(r) + k, k < inputs ? to_int(load(row(r) + k) * by) : broadcast_int(0));
    }
  }
#endif
};
