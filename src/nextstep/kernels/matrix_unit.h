// Products by the matrix unit (AMX), whose sums vectors compute as well, to the last bit.
//
// A tile is 16 rows of 64 bytes. Tiles 0..5 hold sums, or factors where fewer sums are needed; 6 and 7 hold factors.
//   bf16   sums[r][n] += sum over k of rows[r][2k] * weights[k][n][0] + sum over k of rows[r][2k + 1] * weights[k][n][1]
//   bytes  sums[r][n] += sum over k of rows[r][4k..4k+3] * weights[k][n][0..3], as integers
// with sums over k from first to last, fused, numbers too small for a normal one taken as zero (Intel's
// description of TDPBF16PS).
#pragma once

#include "vector_product.h"

constexpr int64_t L2_BYTES = 1 << 20;  // bytes of prepared rows that stay in the second cache

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

// Sums of T row tiles with both halves of a block: tiles 0..5.
template <int T>
inline void zero_sums() {
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
inline void sum_tiles(const char* a, int64_t apart, const char* b, int64_t steps, const char* soon,
                     int64_t lines, bool begin, void* sums) {
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
      LATE ? prefetch_l2(soon) : prefetch_l1(soon);
      if constexpr (!LATE) prefetch_l2(soon + L2_PREFETCH - L1_PREFETCH);
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

// The same sums from first to last step with weights that are decompressed some steps before their use.
template <int T>
inline void sum_decompressed(const char* a, int64_t apart, Bf16Decompressor& weights, int64_t steps, void* sums) {
  constexpr int64_t BEFORE = 2, ROOM = 4;
  alignas(64) char decompressed[ROOM * 2048];
  zero_sums<T>();
  for (int64_t k = -BEFORE; k < steps; k++) {
    if (k + BEFORE < steps) weights.decompress(1, decompressed + (k + BEFORE) % ROOM * 2048);
    if (k < 0) continue;
    const char* b = decompressed + k % ROOM * 2048;
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
inline void unpack_nibbles(const char* from, char* to) {
  for (int half = 0; half < 2; half++, from += 512, to += 1024)
    for (int i = 0; i < 512; i += BYTES) {
      const RegI packed = read<RegI>(from + i);
      write(to + i, (packed << 4) & 0xf0f0f0f0), write(to + 512 + i, packed & 0xf0f0f0f0);
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
        const V v = to_float((load(c + 16 * half) << 7) + load(c + 16 * half + 32));
        float* into = total + 32 * r + 16 * half;
        store(into, fma(v, half ? right : left, load(into)));
      }
  };
  for (int64_t k = 0; k < steps; k++, a += 1024, from += 1024) {
    for (int64_t i = 0; i < 1024; i += 64) prefetch_l1(from + L1_PREFETCH / 2 + i);
    char* b = weights[k % 2];
    unpack_nibbles(from, b);
    zero_sums<T>();
    STEP(0, 0, 2, 4) STEP(1, 1, 3, 5)
    store_sums<T>(part[k % 2]);
    if (k) finish(k - 1);  // a step later, so that nothing waits for the tiles
  }
  finish(steps - 1);
}

// Sums of integers [rows, 32], high and low apart, as numbers: exact, then rounded once.
inline void dequantise_int8(const Activations& x, int64_t first, int64_t rows, const Matrix& m, int64_t block,
                            const void* sums, float* y) {
  for (int64_t r = 0; r < rows; r++, y += BLOCK_OUTPUTS) {
    const int32_t* c = (const int32_t*)sums + 64 * r;
    for (int64_t j = 0; j < BLOCK_OUTPUTS; j++) y[j] = float(128.0 * c[j] + c[j + 32]);
    for (int64_t j = 0; j < BLOCK_OUTPUTS; j += 16)
      store(y + j,
            load(y + j) * load((const float*)m.scale + BLOCK_OUTPUTS * block + j) * broadcast(x.scale[first + r]));
  }
}

template <int T>
inline void group_block(const Activations& x, int64_t tile, const Matrix& m, int64_t block, float* out, int64_t ld) {
  alignas(64) float total[T * 256];
  const int64_t steps = x.steps(), apart = steps * 1024, first = tile * 8;
  const int64_t rows = std::min<int64_t>(T * 8, x.count - first);
  std::fill_n(total, BLOCK_OUTPUTS * rows, 0.0f);
  sum_groups<T>(x.factors + tile * apart, apart, (const char*)m.data + block * steps * 1024,
                (const bf16*)m.scale + block * steps * 32, steps, rows, total);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < BLOCK_OUTPUTS; j += 16)
      store(total + BLOCK_OUTPUTS * r + j, load(total + BLOCK_OUTPUTS * r + j) * broadcast(x.scale[first + r]));
  store_block(m, block, rows, total, out + first * ld, ld);
}

// INT4: blocks begin..end by all rows, three tiles of rows at a time.
inline void group_blocks(const Activations& x, const Matrix& m, int64_t begin, int64_t end, float* out, int64_t ld) {
  const Tiles tiles(x.stacked(), 6, 7);
  const int64_t count = x.tile_count(), fit = std::max<int64_t>(1, L2_BYTES / (3072 * x.steps())) * 3;
  for (int64_t from = 0; from < count; from += fit)
    for (int64_t n = begin; n < end; n++)
      for (int64_t t = from; t < std::min(count, from + fit); t += 3) {
        const int64_t left = count - t;
        if (left >= 3) group_block<3>(x, t, m, n, out, ld);
        if (left == 2) group_block<2>(x, t, m, n, out, ld);
        if (left == 1) group_block<1>(x, t, m, n, out, ld);
      }
}

// Asks for the lines that `store_block` will write, so that it needs not wait for them.
inline void prefetch_output(const float* out, int64_t rows, int64_t ld) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < BLOCK_OUTPUTS; j += 16) __builtin_prefetch(out + r * ld + j, 1, 3);
}

// `pair` tiles of rows by one block: the part of the inputs from step k on, `count` steps, whose weights
// lie at `b`.
struct WeightPart {
  int64_t tile, pair, block, k, count;
  const char* b;
};

template <bool INTEGER, bool LATE>
inline void multiply_part(const Activations& x, const Matrix& m, const WeightPart& turn, const char* soon,
                          int64_t lines, float* sums, float* out, int64_t ld) {
  const int64_t steps = x.steps(), apart = steps * 1024, each = INTEGER ? 8 : 16, first = turn.tile * each;
  const bool last = turn.k + turn.count == steps;
  const int64_t rows = std::min(turn.pair * each, x.count - first);
  const char* a = x.factors + turn.tile * apart + turn.k * 1024;
  const char* b = turn.b;
  float* to = out + first * ld;
  if (last) prefetch_output(to + turn.block * BLOCK_OUTPUTS, rows, ld);
  if (turn.pair == 2)
    sum_tiles<2, INTEGER, LATE>(a, apart, b, turn.count, soon ? soon : b + L1_PREFETCH, lines, !turn.k, sums);
  else
    sum_tiles<1, INTEGER, LATE>(a, apart, b, turn.count, soon ? soon : b + L1_PREFETCH, lines, !turn.k, sums);
  if (!last) return;
  alignas(64) float y[512];
  if constexpr (INTEGER) dequantise_int8(x, first, rows, m, turn.block, sums, y);
  store_block(m, turn.block, rows, INTEGER ? y : sums, to, ld);
}

// `pair` tiles of rows by a whole compressed block.
inline void compressed_block(const Activations& x, int64_t tile, int64_t pair, const Matrix& m, int64_t block,
                             float* out, int64_t ld) {
  const int64_t apart = x.steps() * 1024, first = tile * 16, rows = std::min(pair * 16, x.count - first);
  const char* a = x.factors + tile * apart;
  alignas(64) float sums[1024];
  Bf16Decompressor weights(m, block);
  prefetch_output(out + first * ld + block * BLOCK_OUTPUTS, rows, ld);
  if (pair == 2)
    sum_decompressed<2>(a, apart, weights, x.steps(), sums);
  else
    sum_decompressed<1>(a, apart, weights, x.steps(), sums);
  store_block(m, block, rows, sums, out + first * ld, ld);
}

// Row tiles from..to by blocks begin..end. With few rows the weights come from memory as fast as it gives
// them. With many a part of a block stays in the first cache while all rows go by, and the next is asked for.
// What is compressed is decompressed step by step for few, part by part for many.
template <bool INTEGER>
inline void tile_blocks_of(const Activations& x, int64_t from, int64_t to, const Matrix& m, int64_t begin, int64_t end,
                        float* out, int64_t ld) {
  alignas(64) thread_local float sums[ROW_BLOCK * 512];
  alignas(64) char decompressed[L1_STEPS * 2048];
  const int64_t steps = x.steps(), fit = std::clamp<int64_t>(L2_BYTES / (steps * 1024) / 2 * 2, 4, ROW_BLOCK);
  for (int64_t t0 = from; t0 < to; t0 += fit) {
    const int64_t t1 = std::min(to, t0 + fit);
    const bool few = t1 - t0 <= 3;
    const int64_t part = few ? steps : L1_STEPS;
    const int64_t pairs = (t1 - t0 + 1) / 2, lines = (m.step() / 64 + pairs - 1) / pairs;
    for (int64_t n = begin; n < end; n++) {
      if (few && m.compressed()) {
        for (int64_t t = t0; t < t1; t += 2) compressed_block(x, t, std::min<int64_t>(2, t1 - t), m, n, out, ld);
        continue;
      }
      Bf16Decompressor weights(m, n);
      for (int64_t k = 0; k < steps; k += part) {
        const int64_t count = std::min(part, steps - k);
        const char* b = (const char*)m.data + (n * steps + k) * m.step();
        const char* next = b + count * m.step();
        if (m.compressed()) weights.decompress(count, decompressed), b = decompressed;
        for (int64_t t = t0; t < t1; t += 2, next += count * lines * 64) {
          const WeightPart turn{t, std::min<int64_t>(2, t1 - t), n, k, count, b};
          if (part == steps)
            multiply_part<INTEGER, false>(x, m, turn, nullptr, t == t0 ? 32 : 0, sums, out, ld);
          else
            multiply_part<INTEGER, true>(x, m, turn, next, lines, sums + 512 * (t - t0), out, ld);
        }
      }
    }
  }
}
