// Products of few rows with packed matrices, each weight read once.
//
// A matrix [outputs, inputs] lies in blocks of 32 outputs, each one stream from its first input to its
// last (see packing.py), FP32 and BF16 perhaps squeezed (see squeezing.h). FP32 is computed in vectors of 16
// outputs, one fused multiply-add an input, all others in tiles.
#pragma once

#include "tiles.h"

constexpr int64_t CHUNK = 1 << 20;  // bytes of prepared rows that stay in the second cache
constexpr int64_t STRIP = 64;       // row tiles, or rows in FP32, whose sums are kept

// Writes y [rows, 32 or what is left of it] of one block, with bias.
inline void put(const Matrix& m, int64_t block, int64_t rows, const float* y, float* out, int64_t ld) {
  const int64_t first = WIDTH * block, width = std::min(WIDTH, m.outputs - first);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < width; j += 16) {
      V v = load(y + WIDTH * r + j);
      if (m.bias) v = _mm512_add_ps(v, load(m.bias + first + j));
      store(out + r * ld + first + j, v);
    }
}

// Adds `count` inputs of R rows, which lie `apart`, to y; asks for weights unless they were unfolded.
template <int R, typename W>
inline void sum_floats(const float* x, int64_t apart, const W* w, int64_t count, float* y) {
  V c[R][2];
  for (int r = 0; r < R; r++) c[r][0] = load(y + WIDTH * r), c[r][1] = load(y + WIDTH * r + 16);
  for (int64_t k = 0; k < count; k++, w += WIDTH) {
    if constexpr (sizeof(W) == 4) {
      _mm_prefetch((const char*)w + AHEAD, _MM_HINT_T0);
      _mm_prefetch((const char*)w + AHEAD + 64, _MM_HINT_T0);
      _mm_prefetch((const char*)w + FAR, _MM_HINT_T1);
      _mm_prefetch((const char*)w + FAR + 64, _MM_HINT_T1);
    }
    const V left = load(w), right = load(w + 16);
    for (int r = 0; r < R; r++) {
      const V v = all(x[r * apart + k]);
      c[r][0] = _mm512_fmadd_ps(v, left, c[r][0]);
      c[r][1] = _mm512_fmadd_ps(v, right, c[r][1]);
    }
  }
  for (int r = 0; r < R; r++) store(y + WIDTH * r, c[r][0]), store(y + WIDTH * r + 16, c[r][1]);
}

// Rows from..to by a block: inputs from k on, added to y [to - from, 32].
template <typename W>
inline void add_floats(const Rows& x, int64_t from, int64_t to, int64_t k, const W* w, int64_t count, float* y) {
  for (int64_t r = from; r < to;) {
    const int64_t left = to - r, n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    float* into = y + WIDTH * (r - from);
    if (n == 8) sum_floats<8>(x.row(r) + k, x.inputs, w, count, into);
    if (n == 4) sum_floats<4>(x.row(r) + k, x.inputs, w, count, into);
    if (n == 2) sum_floats<2>(x.row(r) + k, x.inputs, w, count, into);
    if (n == 1) sum_floats<1>(x.row(r) + k, x.inputs, w, count, into);
    r += n;
  }
}

inline void float_block(const Rows& x, const Matrix& m, int64_t block, float* out, int64_t ld) {
  alignas(64) float y[STRIP * WIDTH];
  for (int64_t from = 0; from < x.count; from += STRIP) {
    const int64_t to = std::min(x.count, from + STRIP);
    std::fill_n(y, WIDTH * (to - from), 0.0f);
    if (m.squeezed()) {
      // The next part is unfolded while this one is computed.
      alignas(64) bf16 unfolded[2][PART * 1024];
      const int64_t part = 32 * (x.count > 32 ? PART : 1);
      Unfolder weights(m, block);
      for (int64_t k = -part; k < m.inputs; k += part) {
        auto count = [&](int64_t at) { return std::clamp<int64_t>(m.inputs - at, 0, part); };
        weights.take((count(k + part) + 31) / 32, (char*)unfolded[k / part & 1 ^ 1]);
        if (k >= 0) add_floats(x, from, to, k, unfolded[k / part & 1], count(k), y);
      }
    } else {
      add_floats(x, from, to, 0, (const float*)m.data + block * m.inputs * WIDTH, m.inputs, y);
    }
    put(m, block, to - from, y, out + from * ld, ld);
  }
}

// Sums of integers [rows, 32], high and low apart, as numbers.
inline void join(const Rows& x, int64_t first, int64_t rows, const Matrix& m, int64_t block, const void* sums,
                 float* y) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < WIDTH; j += 16) {
      const int32_t* c = (const int32_t*)sums + 64 * r + j;
      V v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(c)), all(128.0f),
                            _mm512_cvtepi32_ps(_mm512_loadu_si512(c + 32)));
      v = _mm512_mul_ps(v, load((const float*)m.scale + WIDTH * block + j));
      store(y + WIDTH * r + j, _mm512_mul_ps(v, all(x.scale[first + r])));
    }
}

template <int T>
inline void group_block(const Rows& x, int64_t tile, const Matrix& m, int64_t block, float* out, int64_t ld) {
  alignas(64) float total[T * 256];
  const int64_t steps = x.steps(), apart = steps * 1024, first = tile * 8;
  const int64_t rows = std::min<int64_t>(T * 8, x.count - first);
  std::fill_n(total, WIDTH * rows, 0.0f);
  sum_groups<T>(x.tiles + tile * apart, apart, (const char*)m.data + block * steps * 1024,
                (const bf16*)m.scale + block * steps * 32, steps, rows, total);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < WIDTH; j += 16)
      store(total + WIDTH * r + j, _mm512_mul_ps(load(total + WIDTH * r + j), all(x.scale[first + r])));
  put(m, block, rows, total, out + first * ld, ld);
}

// Asks for the lines that `put` will write, so that it needs not wait for them.
inline void expect(const float* out, int64_t rows, int64_t ld) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < WIDTH; j += 16) __builtin_prefetch(out + r * ld + j, 1, 3);
}

// `pair` tiles of rows by one block: the part of the inputs from step k on, `count` steps, whose weights
// lie at `b`.
struct Turn {
  int64_t tile, pair, block, k, count;
  const char* b;
};

template <bool INTEGER, bool LATE>
inline void take_turn(const Rows& x, const Matrix& m, const Turn& turn, const char* soon, int64_t lines,
                      float* sums, float* out, int64_t ld) {
  const int64_t steps = x.steps(), apart = steps * 1024, each = INTEGER ? 8 : 16, first = turn.tile * each;
  const bool last = turn.k + turn.count == steps;
  const int64_t rows = std::min(turn.pair * each, x.count - first);
  const char* a = x.tiles + turn.tile * apart + turn.k * 1024;
  const char* b = turn.b;
  float* to = out + first * ld;
  if (last) expect(to + turn.block * WIDTH, rows, ld);
  if (turn.pair == 2)
    sum_part<2, INTEGER, LATE>(a, apart, b, turn.count, soon ? soon : b + AHEAD, lines, !turn.k, sums);
  else
    sum_part<1, INTEGER, LATE>(a, apart, b, turn.count, soon ? soon : b + AHEAD, lines, !turn.k, sums);
  if (!last) return;
  alignas(64) float y[512];
  if constexpr (INTEGER) join(x, first, rows, m, turn.block, sums, y);
  put(m, turn.block, rows, INTEGER ? y : sums, to, ld);
}

// `pair` tiles of rows by a whole squeezed block.
inline void squeezed_block(const Rows& x, int64_t tile, int64_t pair, const Matrix& m, int64_t block, float* out,
                           int64_t ld) {
  const int64_t apart = x.steps() * 1024, first = tile * 16, rows = std::min(pair * 16, x.count - first);
  const char* a = x.tiles + tile * apart;
  alignas(64) float sums[1024];
  Unfolder weights(m, block);
  expect(out + first * ld + block * WIDTH, rows, ld);
  if (pair == 2)
    sum_unfolded<2>(a, apart, weights, x.steps(), sums);
  else
    sum_unfolded<1>(a, apart, weights, x.steps(), sums);
  put(m, block, rows, sums, out + first * ld, ld);
}

// Row tiles from..to by blocks begin..end. With few rows the weights come from memory as fast as it gives
// them. With many a part of a block stays in the first cache while all rows go by, and the next is asked for.
// What is squeezed is unfolded step by step for few, part by part for many.
template <bool INTEGER>
inline void tile_blocks(const Rows& x, int64_t from, int64_t to, const Matrix& m, int64_t begin, int64_t end,
                        float* out, int64_t ld) {
  alignas(64) thread_local float sums[STRIP * 512];
  alignas(64) char unfolded[PART * 2048];
  const int64_t steps = x.steps(), fit = std::clamp<int64_t>(CHUNK / (steps * 1024) / 2 * 2, 4, STRIP);
  for (int64_t t0 = from; t0 < to; t0 += fit) {
    const int64_t t1 = std::min(to, t0 + fit);
    const bool few = t1 - t0 <= 3;
    const int64_t part = few ? steps : PART;
    const int64_t pairs = (t1 - t0 + 1) / 2, lines = (m.step() / 64 + pairs - 1) / pairs;
    for (int64_t n = begin; n < end; n++) {
      if (few && m.squeezed()) {
        for (int64_t t = t0; t < t1; t += 2) squeezed_block(x, t, std::min<int64_t>(2, t1 - t), m, n, out, ld);
        continue;
      }
      Unfolder weights(m, n);
      for (int64_t k = 0; k < steps; k += part) {
        const int64_t count = std::min(part, steps - k);
        const char* b = (const char*)m.data + (n * steps + k) * m.step();
        const char* next = b + count * m.step();
        if (m.squeezed()) weights.take(count, unfolded), b = unfolded;
        for (int64_t t = t0; t < t1; t += 2, next += count * lines * 64) {
          const Turn turn{t, std::min<int64_t>(2, t1 - t), n, k, count, b};
          if (part == steps)
            take_turn<INTEGER, false>(x, m, turn, nullptr, t == t0 ? 32 : 0, sums, out, ld);
          else
            take_turn<INTEGER, true>(x, m, turn, next, lines, sums + 512 * (t - t0), out, ld);
        }
      }
    }
  }
}

// Whether a product is shared out by rows, which then fit a core's own cache, instead of by outputs.
inline bool by_rows(const Member& me, const Rows& x, const Matrix& m) {
  return (m.format == BF16 || m.format == INT8) && x.tile_count() >= 4 * me.count;
}

// out [count, outputs] with rows `ld` apart: this member's share.
inline void product(const Member& me, const Rows& x, const Matrix& m, float* out, int64_t ld) {
  const int64_t blocks = (m.outputs + WIDTH - 1) / WIDTH, count = x.tile_count();
  int64_t begin = me.begin(blocks), end = me.end(blocks);
  if (m.format == FP32) {
    for (int64_t n = begin; n < end; n++) float_block(x, m, n, out, ld);
    return;
  }
  if (m.format == INT4) {
    const Tiles tiles(x.stacked(), 6, 7);
    const int64_t fit = std::max<int64_t>(1, CHUNK / (3072 * x.steps())) * 3;
    for (int64_t from = 0; from < count; from += fit)
      for (int64_t n = begin; n < end; n++)
        for (int64_t t = from; t < std::min(count, from + fit); t += 3) {
          const int64_t left = count - t;
          if (left >= 3) group_block<3>(x, t, m, n, out, ld);
          if (left == 2) group_block<2>(x, t, m, n, out, ld);
          if (left == 1) group_block<1>(x, t, m, n, out, ld);
        }
    return;
  }
  const Tiles tiles(x.stacked(), 6, 8);
  int64_t from = 0, to = count;
  if (by_rows(me, x, m)) {
    const int64_t pairs = (count + 1) / 2;
    from = 2 * me.begin(pairs), to = std::min(count, 2 * me.end(pairs));
    begin = 0, end = blocks;
  }
  if (m.format == INT8)
    tile_blocks<true>(x, from, to, m, begin, end, out, ld);
  else
    tile_blocks<false>(x, from, to, m, begin, end, out, ld);
}
