// Matrices, and bf16 values kept in 12 bits without loss.
//
// The high byte of a bf16 number, its sign and most of its exponent, is nearly always one of 16. So a compressed
// matrix, whose values are all bf16, keeps the low byte, half a byte for which of the 16 it is, and the few values
// with another one whole beside them (see lossless.py).
#pragma once

#include "common.h"

// A value whose high byte is none of the 16: where it stands in its block, counted in values.
struct Outlier {
  uint32_t place, value;
};

struct Matrix {
  int64_t format, outputs, inputs;
  const void* data;
  const void* scale;  // INT8 float [outputs], INT4 bf16 [blocks, groups, 32]
  const float* bias;  // or none
  // Of compressed ones: the 16 high bytes, and values with others, block by block.
  const uint8_t* high;
  const Outlier* outliers;
  const int64_t* first;  // [blocks + 1]
  int64_t halved;        // whether FP32 lies as bf16, outputs i and i + 16 of an input side by side

  bool compressed() const { return high != nullptr; }
  // Steps of 32 inputs, or 64 integers, and bytes of one by the outputs of a block.
  int64_t steps() const { return format >= INT8 ? (inputs + 63) / 64 : (inputs + 31) / 32; }
  int64_t wide_step() const { return halved ? 2048 : 4096; }  // of FP32
  int64_t step() const { return compressed() ? 1536 : format == INT4 ? 1024 : 2048; }
};

constexpr int64_t BLOCK_OUTPUTS = 32;    // outputs of a block
constexpr int64_t L1_PREFETCH = 4096;  // bytes that reading into the first cache runs ahead of use
constexpr int64_t L2_PREFETCH = 32768;   // and into the second, whose waiting room for lines is larger
constexpr int64_t L1_STEPS = 8;      // steps of a block that stay in the first cache

// Decompresses a block of a compressed matrix from its first step on.
struct Bf16Decompressor {
  const char* from;
  const Outlier *outlier, *end;
  uint32_t done = 0;  // values
  RegB high;

  Bf16Decompressor(const Matrix& m, int64_t block) {
    if (!m.compressed()) return;
    from = (const char*)m.data + block * m.steps() * m.step();
    outlier = m.outliers + m.first[block], end = m.outliers + m.first[block + 1];
    for (int i = 0; i < BYTES; i += 16) std::copy_n(m.high, 16, (uint8_t*)&high + i);
  }

  // Writes the next `count` steps as they were before, 2048 bytes each.
  void decompress(int64_t count, char* to) {
    bf16* values = (bf16*)to;
    for (int64_t i = 0; i < 8 * count; i++, from += 192, to += 256) {
      for (int64_t line = 0; line < 192; line += 64)
        prefetch_l1(from + L1_PREFETCH + line), prefetch_l2(from + L2_PREFETCH + line);
      for (int64_t at = 0; at < 64; at += BYTES) {
        const RegB both = read<RegB>(from + 128 + at);
        for (int half = 0; half < 2; half++) {
          const RegB code = half ? both >> 4 : both & 15;
          const RegB l = read<RegB>(from + 64 * half + at), h = table_lookup(high, code);
          // Quarters of two lines take turns.
          const RegB first = interleave_low(l, h), second = interleave_high(l, h);
          write(to + 128 * half + at, first), write(to + 128 * half + 64 + at, second);
        }
      }
    }
    for (; outlier < end && outlier->place < done + 1024 * count; outlier++)
      values[outlier->place - done] = outlier->value;
    done += 1024 * count;
  }
};

// Compresses blocks of `count` values each; those behind the last up to a whole step are zeros.
struct Bf16Compressor {
  const void* values;  // bf16, or float if wide
  int64_t wide, blocks, count;
  const uint8_t* codes;  // [256]: of each high byte, 16 for none
  int64_t* first;        // of each block's outliers [blocks + 1]
  char* data;
  Outlier* outliers;

  int64_t steps() const { return (count + 1023) / 1024; }
  uint32_t bits(int64_t block, int64_t i) const {
    if (i >= count) return 0;
    return wide ? ((const uint32_t*)values)[block * count + i] >> 16 : ((const bf16*)values)[block * count + i];
  }
  // Whether a value is more than these bits.
  bool lost(int64_t block, int64_t i) const {
    return wide && (((const uint32_t*)values)[block * count + i] & 0xffff);
  }

  void block(int64_t n) const {
    char* to = data + n * steps() * 1536;
    Outlier* outlier = outliers + first[n];
    for (int64_t i = 0; i < steps() * 1024; i += 128, to += 192) {
      std::fill_n(to + 128, 64, 0);
      for (int64_t k = 0; k < 128; k++) {
        const uint32_t value = bits(n, i + k);
        uint32_t code = codes[value >> 8];
        if (code > 15) {
          code = 0;
          if (i + k < count) *outlier++ = {uint32_t(i + k), value};
        }
        // Quarters of two lines take turns.
        const int64_t half = k / 64, line = k / 32 % 2, at = k % 32 / 8 * 16 + line * 8 + k % 8;
        to[64 * half + at] = char(value);
        to[128 + at] |= char(code << 4 * half);
      }
    }
  }
};
