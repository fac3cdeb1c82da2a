// Products by vectors: blocks of 32 outputs by as many rows at a time as registers hold sums for.
//
// Weights of a block come in parts that stay in the first cache while all rows go by; sums wait in memory. The
// order of a row's sums, which all processors share:
//   FP32  one fused multiply-add an input, from first to last
//   BF16  for each 32 inputs the even ones and the odd ones apart, from first to last, fused; both added, then to the
//         sum; numbers too small for a normal one are zero (Intel's description of TDPBF16PS)
//   INT8  exact, rounded once at the end
//   INT4  exact within a group of 64 inputs, rounded and scaled, then added from first to last, fused
#pragma once

#include "rows.h"

constexpr int64_t ROW_BLOCK = 64;  // rows whose sums are kept
// A function of its own, for which the compiler shares out registers better than inside of another one.
#define APART __attribute__((noinline)) inline

// Writes y [rows, 32 or what is left of it] of one block, with bias.
inline void store_block(const Matrix& m, int64_t block, int64_t rows, const float* y, float* out, int64_t ld) {
  const int64_t first = BLOCK_OUTPUTS * block, width = std::min(BLOCK_OUTPUTS, m.outputs - first);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < width; j += 16) {
      const V v = load(y + BLOCK_OUTPUTS * r + j);
      store(out + r * ld + first + j, m.bias ? v + load(m.bias + first + j) : v);
    }
}

// Calls f with the number of rows as a constant: the most that there are, up to R.
template <int R, typename F>
inline void for_rows(int64_t rows, F f) {
  if (rows >= R)
    f(std::integral_constant<int, R>());
  else if constexpr (R > 1)
    for_rows<R - 1>(rows, f);
}

// Asks for `bytes` of weights from w on some time before they are read.
inline void prefetch_weights(const char* w, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) prefetch_l1(w + L1_PREFETCH + i), prefetch_l2(w + L2_PREFETCH + i);
}

// Weights of one input in a block: as they are, as bf16, or two bf16 in 32 bits. Part i of the first 16 outputs, or of the
// last ones.
template <typename W>
constexpr int64_t LINE = sizeof(W) == 4 && std::is_integral_v<W> ? BLOCK_OUTPUTS / 2 : BLOCK_OUTPUTS;
template <typename W>
SIMD RegF weights(const W* w, int i, bool last) {
  return part(w + (last * REGS + i) * LANES);
}
SIMD RegF weights(const uint32_t* w, int i, bool last) {
  const RegU both = read<RegU>(w + i * LANES);
  return (RegF)(last ? both & 0xffff0000 : both << 16);
}

// Of `parts` vectors those whose sums R rows keep in registers at once: all, or half of them where there are too few
// registers for all, because a sum that waits in memory costs more than a second pass over the weights.
template <int R>
constexpr int at_once(int parts) {
  return R * parts <= FEW_SUMS || parts == 1 ? parts : parts / 2;
}

// Adds `count` inputs of R rows, which lie `apart`, to y [R, 32], whose rows lie `ld` apart; asks for what comes behind w
// if it is FIRST to read.
template <int R, bool FIRST, typename W>
APART void sum_floats(const float* x, int64_t apart, const W* w, int64_t count, float* y, int64_t ld) {
  // Parts of vectors by themselves: as members of `V` the compiler writes every sum to memory after each input.
  constexpr int P = at_once<R>(2 * REGS), HALF = P / 2;
  for (int from = 0; from < REGS; from += HALF) {
    // As many of the first 16 outputs as of the last: halved weights hold one of each.
    const auto place = [from](int i) { return from + i % HALF + i / HALF * REGS; };
    RegF c[R][P];
    const W* at = w;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int i = 0; i < P; i++) c[r][i] = read<RegF>(y + ld * r + place(i) * LANES);
    for (int64_t k = 0; k < count; k++, at += LINE<W>) {
      if constexpr (FIRST)
        if (!from) prefetch_weights((const char*)at, LINE<W> * sizeof(W));
      RegF own[P];
#pragma GCC unroll 8
      for (int i = 0; i < P; i++) own[i] = weights(at, from + i % HALF, i >= HALF);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const RegF v = x[r * apart + k] - RegF{};
#pragma GCC unroll 8
        for (int i = 0; i < P; i++) c[r][i] = fused(v, own[i], c[r][i]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int i = 0; i < P; i++) write(y + ld * r + place(i) * LANES, c[r][i]);
  }
}

// Adds `steps` steps of 32 inputs: 16 lines of pairs for each half of the outputs.
template <int R, bool FIRST>
APART void sum_bf16(const float* x, int64_t apart, const char* w, int64_t steps, float* y) {
  constexpr int P = std::max(1, at_once<R>(2 * REGS) / 2);
  for (int64_t s = 0; s < steps; s++, x += 32)
    for (int64_t j = 0; j < BLOCK_OUTPUTS; j += 16, w += 1024)
      for (int from = 0; from < REGS; from += P) {
        RegF even[R][P] = {}, odd[R][P] = {};
        for (int64_t k = 0; k < 32; k += 2) {
          const char* line = w + 32 * k;
          if constexpr (FIRST)
            if (!from) prefetch_weights(line, 64);
          RegF first[P], second[P];
#pragma GCC unroll 8
          for (int i = 0; i < P; i++) {
            const RegU both = read<RegU>(line + (from + i) * BYTES);
            first[i] = (RegF)(both << 16), second[i] = (RegF)(both & 0xffff0000);
          }
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            const RegF before = x[r * apart + k] - RegF{}, behind = x[r * apart + k + 1] - RegF{};
#pragma GCC unroll 8
            for (int i = 0; i < P; i++) {
              even[r][i] = fused(before, first[i], even[r][i]);
              odd[r][i] = fused(behind, second[i], odd[r][i]);
            }
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
          for (int i = 0; i < P; i++) {
            float* into = y + BLOCK_OUTPUTS * r + j + (from + i) * LANES;
            write(into, read<RegF>(into) + (even[r][i] + odd[r][i]));
          }
      }
}

// Steps of 64 inputs, at most 16, or sums would leave 32 bits; adds them to y as they are.
template <int R, bool FIRST>
APART void sum_int8(const int16_t* x, int64_t apart, const char* w, int64_t steps, double* y) {
  constexpr int P = std::max(1, at_once<R>(2 * REGS) / 2);
  for (int64_t j = 0; j < BLOCK_OUTPUTS; j += 16)
    for (int at = 0; at < REGS; at += P) {
      DotSums<P> sum[R] = {};
      for (int64_t s = 0; s < steps; s++) {
        const char* from = w + 2048 * s + 64 * j;
        for (int64_t k = 0; k < 16; k++) {
          if constexpr (FIRST)
            if (!at) prefetch_weights(from + 64 * k, 64);
          const WeightLine<P> by = line<P>(from + 64 * k + at * BYTES);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) add_dot_products(sum[r], x + r * apart + QUANT_GROUP * s + 4 * k, by);
        }
      }
      for (int r = 0; r < R; r++)
        for (int i = 0; i < P; i++) {
          int32_t own[LANES];
          write(own, total(sum[r], i));
          for (int o = 0; o < LANES; o++) y[BLOCK_OUTPUTS * r + j + (at + i) * LANES + o] += own[o];
        }
    }
}

// Adds `steps` steps of 64 inputs: 8 lines of nibbles for each half of the outputs.
template <int R, bool FIRST>
APART void sum_int4(const int16_t* x, int64_t apart, const char* w, const bf16* scale, int64_t steps, float* y) {
  constexpr int P = std::max(1, at_once<R>(2 * REGS) / 2);
  for (int64_t s = 0; s < steps; s++, x += QUANT_GROUP, scale += BLOCK_OUTPUTS)
    for (int64_t j = 0; j < BLOCK_OUTPUTS; j += 16, w += 512)
      for (int at = 0; at < REGS; at += P) {
        DotSums<P> sum[R] = {};
        for (int64_t k = 0; k < 8; k++) {
          if constexpr (FIRST)
            if (!at) prefetch_weights(w + 64 * k, 64);
          WeightLine<P> first, second;
          unpack_nibbles(w + 64 * k + at * BYTES, first, second);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            add_dot_products(sum[r], x + r * apart + 4 * k, first);
            add_dot_products(sum[r], x + r * apart + 4 * (k + 8), second);
          }
        }
        for (int i = 0; i < P; i++) {
          const int64_t place = j + (at + i) * LANES;
          const RegF by = part(scale + place);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            float* into = y + BLOCK_OUTPUTS * r + place;
            write(into, fused(__builtin_convertvector(total(sum[r], i), RegF), by, read<RegF>(into)));
          }
        }
      }
}

// A block's weights in parts: `at(k, steps)` gives those from step k on, ready to be read.
struct Parts {
  const Matrix& m;
  const char* from;
  Bf16Decompressor decompressor;
  alignas(64) char own[L1_STEPS * 2048];

  Parts(const Matrix& m, int64_t block) : m(m), decompressor(m, block) {
    from = (const char*)m.data + block * (m.format == FP32 ? m.inputs * m.wide_step() / 32 : m.steps() * m.step());
  }
  const char* at(int64_t k, int64_t steps) {
    if (m.compressed()) return decompressor.decompress(steps, own), own;
    return from + k * (m.format == FP32 ? m.wide_step() : m.step());
  }
};

// Calls f(rows, first, r) for groups of up to R rows from r on, first for the first of them, both as constants.
template <int R, typename F>
inline void in_row_groups(int64_t from, int64_t to, F f) {
  for (int64_t r = from; r < to;)
    for_rows<R>(to - r, [&](auto rows) {
      r == from ? f(rows, std::true_type(), r) : f(rows, std::false_type(), r);
      r += rows;
    });
}

// Sums of rows from..to by steps k..k + steps of a block, whose weights are w.
inline void sum_part(const Activations& x, int64_t from, int64_t to, const Matrix& m, int64_t block, int64_t k,
                     int64_t steps, const char* w, float* y, double* exact) {
  if (m.format == FP32) {
    const int64_t count = std::min(32 * steps, m.inputs - 32 * k);
    in_row_groups<ROWS>(from, to, [&](auto rows, auto first, int64_t r) {
      constexpr int R = rows;
      float* into = y + BLOCK_OUTPUTS * (r - from);
      if (m.compressed())
        sum_floats<R, false>(x.row(r) + 32 * k, x.apart, (const bf16*)w, count, into, BLOCK_OUTPUTS);
      else if (m.halved)
        sum_floats<R, first>(x.row(r) + 32 * k, x.apart, (const uint32_t*)w, count, into, BLOCK_OUTPUTS);
      else
        sum_floats<R, first>(x.row(r) + 32 * k, x.apart, (const float*)w, count, into, BLOCK_OUTPUTS);
    });
  }
#ifndef NEXTSTEP_TILES
  const int64_t apart = x.steps() * QUANT_GROUP;
  if (m.format == BF16) {
    in_row_groups<ROWS>(from, to, [&](auto rows, auto first, int64_t r) {
      constexpr int R = rows;
      float* into = y + BLOCK_OUTPUTS * (r - from);
      if (m.compressed())
        sum_bf16<R, false>(x.row(r) + 32 * k, x.apart, w, steps, into);
      else
        sum_bf16<R, first>(x.row(r) + 32 * k, x.apart, w, steps, into);
    });
  }
  if (m.format == INT8) {
    in_row_groups<ROWS>(from, to, [&](auto rows, auto first, int64_t r) {
      sum_int8<rows, first>(x.integers(r) + QUANT_GROUP * k, apart, w, steps, exact + BLOCK_OUTPUTS * (r - from));
    });
  }
  if (m.format == INT4) {
    const bf16* scale = (const bf16*)m.scale + (block * x.steps() + k) * BLOCK_OUTPUTS;
    in_row_groups<ROWS>(from, to, [&](auto rows, auto first, int64_t r) {
      sum_int4<rows, first>(x.integers(r) + QUANT_GROUP * k, apart, w, scale, steps, y + BLOCK_OUTPUTS * (r - from));
    });
  }
#endif
}

// All rows by one block, with bias.
inline void vector_block(const Activations& x, const Matrix& m, int64_t block, float* out, int64_t ld) {
  alignas(64) float y[ROW_BLOCK * BLOCK_OUTPUTS];
  alignas(64) double exact[ROW_BLOCK * BLOCK_OUTPUTS];  // of INT8
  for (int64_t from = 0; from < x.count; from += ROW_BLOCK) {
    const int64_t to = std::min(x.count, from + ROW_BLOCK), count = BLOCK_OUTPUTS * (to - from);
    if (m.format == INT8)
      std::fill_n(exact, count, 0.0);
    else
      std::fill_n(y, count, 0.0f);
    Parts parts(m, block);
    const int64_t part = m.compressed() && to - from <= 8 ? 1 : L1_STEPS;
    for (int64_t k = 0; k < x.steps(); k += part) {
      const int64_t steps = std::min(part, x.steps() - k);
      sum_part(x, from, to, m, block, k, steps, parts.at(k, steps), y, exact);
    }
    if (m.format == INT8) std::copy_n(exact, count, y);  // rounded here
    if (m.format >= INT8)
      for (int64_t i = 0; i < count; i += 16) {
        const V own = m.format == INT8
                          ? load(y + i) * load((const float*)m.scale + BLOCK_OUTPUTS * block + i % BLOCK_OUTPUTS)
                          : load(y + i);
        store(y + i, own * broadcast(x.scale[from + i / BLOCK_OUTPUTS]));
      }
    store_block(m, block, to - from, y, out + from * ld, ld);
  }
}
