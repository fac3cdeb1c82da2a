// Products of few rows with packed matrices, each weight read once.
//
// A matrix [outputs, inputs] lies in blocks of 32 outputs, each one stream from its first input to its
// last (see packing.py). Rows are prepared in the form that the matrix' format asks for:
//   FP32  as they are; vectors of 16 outputs, one fused multiply-add an input
//   BF16  in tiles of 16 rows x 32 inputs
//   INT8, INT4  as 15-bit integers, 128 * high + low, in tiles of 16 rows x 64 inputs, a row's high and low
//         bytes one under the other; sums of integers are exact, so only weights lose precision
#pragma once

#include "common.h"

struct Matrix {
  int64_t format, outputs, inputs;
  const void* data;
  const void* scale;  // INT8 float [outputs], INT4 bf16 [blocks, groups, 32]
  const float* bias;  // or none
};

constexpr int64_t WIDTH = 32;   // outputs of a block
constexpr int64_t GROUP = 64;   // inputs of an integer tile; INT4 has a scale for each
constexpr int64_t AHEAD = 4096; // bytes that reading into the first cache runs ahead of use
constexpr int64_t FAR = 32768;  // and into the second, whose waiting room for lines is larger
constexpr int64_t CHUNK = 1 << 19;  // bytes of prepared rows that stay in the second cache
constexpr int64_t PART = 8;         // steps of a block that stay in the first
constexpr int64_t STRIP = 64;       // row tiles whose sums are kept

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

// The tile unit of this thread while it lives. Rows of left factors and sums are as few as there are.
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
};

// Tiles are read and written in words of their own, because g++ believes that its intrinsics touch no
// memory and moves or drops what was stored for them.
#define READ_TILE(TILE, FROM, STRIDE) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #TILE : : "r"(FROM), "r"(int64_t(STRIDE)) : "memory")
#define WRITE_TILE(TILE, TO, STRIDE) \
  asm volatile("tilestored %%tmm" #TILE ", (%0,%1,1)" : : "r"(TO), "r"(int64_t(STRIDE)) : "memory")

// Sums of T row tiles with both halves of a block: tiles 0..5.
template <int T>
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (T > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  if constexpr (T > 2) {
    _tile_zero(4);
    _tile_zero(5);
  }
}

#define MULTIPLY(SUM, ROWS, WEIGHTS)  \
  if constexpr (INTEGER)              \
    _tile_dpbssd(SUM, ROWS, WEIGHTS); \
  else                                \
    _tile_dpbf16ps(SUM, ROWS, WEIGHTS);

// One half of a block by up to three row tiles, from b and a on: weights in tile 6, rows in 7.
#define STEP(HALF, A, B, C)          \
  READ_TILE(6, b + 1024 * HALF, 64); \
  READ_TILE(7, a, 64);               \
  _tile_dpbssd(A, 7, 6);             \
  if constexpr (T > 1) {             \
    READ_TILE(7, a + apart, 64);     \
    _tile_dpbssd(B, 7, 6);           \
  }                                  \
  if constexpr (T > 2) {             \
    READ_TILE(7, a + 2 * apart, 64); \
    _tile_dpbssd(C, 7, 6);           \
  }

// out holds T tiles of 16 rows x 32.
template <int T>
inline void store_sums(void* out) {
  char* c = (char*)out;
  WRITE_TILE(0, c, 128);
  WRITE_TILE(1, c + 64, 128);
  if constexpr (T > 1) {
    WRITE_TILE(2, c + 2048, 128);
    WRITE_TILE(3, c + 2112, 128);
  }
  if constexpr (T > 2) {
    WRITE_TILE(4, c + 4096, 128);
    WRITE_TILE(5, c + 4160, 128);
  }
}

// Two halves of a block by one or two row tiles: sums in tiles 0..3, rows in 4 and 5, weights in 6 and 7.
// Sums go on from `sums` unless they begin. Each step asks for `lines` lines of what is read later, from
// `soon` on, into the first cache, having asked for them for the second before, or, where that is LATE, into
// the second alone.
template <int T, bool INTEGER, bool LATE>
inline void sum_part(const char* a, int64_t apart, const char* b, int64_t steps, const char* soon,
                     int64_t lines, bool begin, void* sums) {
  char* c = (char*)sums;
  if (begin) {
    zero_sums<T>();
  } else {
    READ_TILE(0, c, 128);
    READ_TILE(1, c + 64, 128);
    if constexpr (T > 1) {
      READ_TILE(2, c + 2048, 128);
      READ_TILE(3, c + 2112, 128);
    }
  }
  for (int64_t k = 0; k < steps; k++, a += 1024, b += 2048) {
    for (int64_t i = 0; i < lines; i++, soon += 64) {
      _mm_prefetch(soon, LATE ? _MM_HINT_T1 : _MM_HINT_T0);
      if constexpr (!LATE) _mm_prefetch(soon + FAR - AHEAD, _MM_HINT_T1);
    }
    READ_TILE(6, b, 64);
    READ_TILE(4, a, 64);
    READ_TILE(7, b + 1024, 64);
    MULTIPLY(0, 4, 6)
    MULTIPLY(1, 4, 7)
    if constexpr (T > 1) {
      READ_TILE(5, a + apart, 64);
      MULTIPLY(2, 5, 6)
      MULTIPLY(3, 5, 7)
    }
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

// R rows from x on, both halves of a block.
template <int R>
inline void sum_floats(const float* x, int64_t inputs, const float* w, float* y) {
  V c[R][2];
  for (int r = 0; r < R; r++) c[r][0] = c[r][1] = all(0.0f);
  for (int64_t k = 0; k < inputs; k++, w += WIDTH) {
    _mm_prefetch((const char*)w + AHEAD, _MM_HINT_T0);
    _mm_prefetch((const char*)w + AHEAD + 64, _MM_HINT_T0);
    _mm_prefetch((const char*)w + FAR, _MM_HINT_T1);
    _mm_prefetch((const char*)w + FAR + 64, _MM_HINT_T1);
    const V left = load(w), right = load(w + 16);
    for (int r = 0; r < R; r++) {
      const V v = all(x[r * inputs + k]);
      c[r][0] = _mm512_fmadd_ps(v, left, c[r][0]);
      c[r][1] = _mm512_fmadd_ps(v, right, c[r][1]);
    }
  }
  for (int r = 0; r < R; r++) store(y + WIDTH * r, c[r][0]), store(y + WIDTH * r + 16, c[r][1]);
}

inline void float_block(const Rows& x, const Matrix& m, int64_t block, float* out, int64_t ld) {
  const float* w = (const float*)m.data + block * m.inputs * WIDTH;
  alignas(64) float y[8 * WIDTH];
  for (int64_t r = 0; r < x.count;) {
    const int64_t left = x.count - r, n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const float* from = x.row(r);
    if (n == 8) sum_floats<8>(from, m.inputs, w, y);
    if (n == 4) sum_floats<4>(from, m.inputs, w, y);
    if (n == 2) sum_floats<2>(from, m.inputs, w, y);
    if (n == 1) sum_floats<1>(from, m.inputs, w, y);
    put(m, block, n, y, out + r * ld, ld);
    r += n;
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

// `pair` tiles of rows by one block: the part of the inputs from step k on, `count` steps.
struct Turn {
  int64_t tile, pair, block, k, count;
};

template <bool INTEGER, bool LATE>
inline void take_turn(const Rows& x, const Matrix& m, const Turn& turn, const char* soon, int64_t lines,
                      float* sums, float* out, int64_t ld) {
  const int64_t steps = x.steps(), apart = steps * 1024, each = INTEGER ? 8 : 16, first = turn.tile * each;
  const bool last = turn.k + turn.count == steps;
  const int64_t rows = std::min(turn.pair * each, x.count - first);
  const char* a = x.tiles + turn.tile * apart + turn.k * 1024;
  const char* b = (const char*)m.data + (turn.block * steps + turn.k) * 2048;
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

// Row tiles from..to by blocks begin..end. With few rows the weights come from memory as fast as it gives
// them. With many a part of a block stays in the first cache while all rows go by, and the next is asked for.
template <bool INTEGER>
inline void tile_blocks(const Rows& x, int64_t from, int64_t to, const Matrix& m, int64_t begin, int64_t end,
                        float* out, int64_t ld) {
  alignas(64) thread_local float sums[STRIP * 512];
  const int64_t steps = x.steps(), fit = std::clamp<int64_t>(CHUNK / (steps * 1024) / 2 * 2, 4, STRIP);
  for (int64_t t0 = from; t0 < to; t0 += fit) {
    const int64_t t1 = std::min(to, t0 + fit), part = t1 - t0 > 3 ? PART : steps;
    const int64_t pairs = (t1 - t0 + 1) / 2, lines = (32 + pairs - 1) / pairs;
    for (int64_t n = begin; n < end; n++)
      for (int64_t k = 0; k < steps; k += part) {
        const int64_t count = std::min(part, steps - k);
        const char* next = (const char*)m.data + (n * steps + k + count) * 2048;
        for (int64_t t = t0; t < t1; t += 2, next += count * lines * 64) {
          const Turn turn{t, std::min<int64_t>(2, t1 - t), n, k, count};
          if (part == steps)
            take_turn<INTEGER, false>(x, m, turn, nullptr, t == t0 ? 32 : 0, sums, out, ld);
          else
            take_turn<INTEGER, true>(x, m, turn, next, lines, sums + 512 * (t - t0), out, ld);
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
