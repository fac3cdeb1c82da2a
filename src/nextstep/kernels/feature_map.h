// Feature maps of the image tokenizer: convolutions, group norm, attention over places.
//
// A map [height, width, channels] lies pixel by pixel, its channels a multiple of 16. Convolutions of 3 x 3 go by
// Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308, section 4.1): 16 products of a tile's 2 x 2 outputs where
// the sum over its taps has 36. Where a map is doubled before by repeating pixels, a tile's inputs are a, b, b, c in
// each direction and a sixth of both sums is zero: 9 products are left. A pixel's sums know nothing of its neighbours'
// threads, so every processor computes the same bytes.
//
// C channels read, N written, n tiles or pixels of a strip.
#pragma once

#include "product.h"

// Tiles or pixels that go through a product together: a multiple of the rows that any processor holds sums for.
constexpr int64_t STRIP_ROWS = 48;
constexpr int64_t K_BLOCK = 256;  // inputs of a block of weights that stay in the first cache, 32 KB
constexpr int64_t SUMMED = 128;  // pixels whose sums are made in one go

enum Kind : int64_t { POINT = 0, SAME = 1, DOUBLED = 2, HALVED = 3 };

struct Convolution {
  int64_t kind, height, width, inputs, outputs;  // of the map that is read
  const float* weights;                          // packed [products, blocks, inputs, 32]
  const float* bias;                             // [outputs]

  // Products of a strip, and inputs of each.
  int64_t products() const { return kind == SAME ? 16 : kind == DOUBLED ? 9 : 1; }
  int64_t depth() const { return kind == HALVED ? 9 * inputs : inputs; }
  int64_t size(int64_t side) const { return kind == SAME ? (side + 1) / 2 : kind == HALVED ? side / 2 : side; }
  int64_t items() const { return kind == POINT ? height * width : size(height) * size(width); }
};

// out [n, up(N, 32)] = x [n, C], whose rows lie `apart`, by packed weights.
inline void matmul_packed(const float* x, int64_t apart, int64_t n, const float* w, int64_t C, int64_t N, float* out) {
  const int64_t ld = up(N, BLOCK_OUTPUTS);
  std::fill_n(out, n * ld, 0.0f);
  for (int64_t j = 0; j < ld; j += BLOCK_OUTPUTS, w += C * BLOCK_OUTPUTS)
    for (int64_t k = 0; k < C; k += K_BLOCK)
      in_row_groups<ROWS>(0, n, [&](auto rows, auto first, int64_t r) {
        sum_floats<rows, first>(x + r * apart + k, apart, w + k * BLOCK_OUTPUTS, std::min(K_BLOCK, C - k),
                                out + r * ld + j, ld);
      });
}

// One direction of a tile's inputs, and of its outputs.
template <int SIZE>
SIMD void winograd_inputs(RegF& a, RegF& b, RegF& c, RegF& d) {
  if constexpr (SIZE == 4) {
    const RegF own[] = {a - c, b + c, c - b, b - d};
    a = own[0], b = own[1], c = own[2], d = own[3];
  } else {
    a = a - b, c = b - c;
  }
}
template <int SIZE>
SIMD void winograd_outputs(RegF& a, RegF& b, RegF c, RegF d) {
  if constexpr (SIZE == 4) {
    a = a + b + c, b = b - c - d;
  } else {
    a = a + b, b = b - c;
  }
}

// A strip of tiles on its way through the products, each of which has its own rows.
struct Strip {
  float *from, *to, *nothing;       // [products, STRIP_ROWS, C], the same with up(N, 32), zeros [C]
  int64_t from_apart, to_apart;     // from product to product: off multiples of a page, which share lines of a cache

  Strip(ScratchAllocator& p, const Convolution& c)
      : from_apart(STRIP_ROWS * c.depth() + 16), to_apart(STRIP_ROWS * up(c.outputs, BLOCK_OUTPUTS) + 16) {
    from = p.allocate<float>(c.products() * from_apart);
    to = p.allocate<float>(c.products() * to_apart);
    nothing = p.allocate<float>(c.inputs);
  }
};

// The pixel [C] at a place, or zeros outside.
inline const float* pixel(const Convolution& c, const Strip& s, const float* x, int64_t row, int64_t column) {
  const bool inside = row >= 0 && row < c.height && column >= 0 && column < c.width;
  return inside ? x + (row * c.width + column) * c.inputs : s.nothing;
}

// Inputs of tile `item`, whose row in the strip is i; SIZE x SIZE products.
template <int SIZE>
inline void read_tile(const Convolution& c, const Strip& s, const float* x, int64_t item, int64_t i) {
  const int64_t across = c.size(c.width), each = SIZE == 4 ? 2 : 1;
  const int64_t row = item / across * each - 1, column = item % across * each - 1;
  const float* at[SIZE][SIZE];
  for (int y = 0; y < SIZE; y++)
    for (int z = 0; z < SIZE; z++) at[y][z] = pixel(c, s, x, row + y, column + z);
  for (int64_t k = 0; k < c.inputs; k += LANES) {
    RegF d[4][4];
    for (int y = 0; y < SIZE; y++) {
      for (int z = 0; z < SIZE; z++) d[y][z] = read<RegF>(at[y][z] + k);
      winograd_inputs<SIZE>(d[y][0], d[y][1], d[y][2], d[y][3]);
    }
    for (int z = 0; z < SIZE; z++) winograd_inputs<SIZE>(d[0][z], d[1][z], d[2][z], d[3][z]);
    for (int y = 0; y < SIZE; y++)
      for (int z = 0; z < SIZE; z++)
        write(s.from + (y * SIZE + z) * s.from_apart + i * c.inputs + k, d[y][z]);
  }
}

template <int SIZE>
inline void write_tile(const Convolution& c, const Strip& s, int64_t item, int64_t i, const float* add, float* out) {
  const int64_t across = c.size(c.width), N = c.outputs, ld = up(N, BLOCK_OUTPUTS), each = SIZE == 4 ? 1 : 2;
  const int64_t row = item / across * 2, column = item % across * 2, width = c.width * each;
  for (int64_t k = 0; k < N; k += LANES) {
    RegF m[4][4];
    for (int y = 0; y < SIZE; y++) {
      for (int z = 0; z < SIZE; z++) m[y][z] = read<RegF>(s.to + (y * SIZE + z) * s.to_apart + i * ld + k);
      winograd_outputs<SIZE>(m[y][0], m[y][1], m[y][2], m[y][3]);
    }
    for (int z = 0; z < 2; z++) {
      winograd_outputs<SIZE>(m[0][z], m[1][z], m[2][z], m[3][z]);
      for (int y = 0; y < 2; y++) {
        if (row + y >= c.height * each || column + z >= width) continue;
        const int64_t to = ((row + y) * width + column + z) * N + k;
        const RegF v = m[y][z] + read<RegF>(c.bias + k);
        write(out + to, add ? v + read<RegF>(add + to) : v);
      }
    }
  }
}

// Inputs of one output of a convolution of 3 x 3 that halves a map; it is padded on the right and below alone.
inline void im2col(const Convolution& c, const Strip& s, const float* x, int64_t item, int64_t i) {
  const int64_t across = c.size(c.width), row = item / across * 2, column = item % across * 2;
  for (int64_t tap = 0; tap < 9; tap++)
    std::copy_n(pixel(c, s, x, row + tap / 3, column + tap % 3), c.inputs, s.from + i * c.depth() + tap * c.inputs);
}

inline void write_pixel(const Convolution& c, const Strip& s, int64_t item, int64_t i, const float* add, float* out) {
  const float* own = s.to + i * up(c.outputs, BLOCK_OUTPUTS);
  const int64_t to = item * c.outputs;
  for (int64_t k = 0; k < c.outputs; k += LANES) {
    const RegF v = read<RegF>(own + k) + read<RegF>(c.bias + k);
    write(out + to + k, add ? v + read<RegF>(add + to + k) : v);
  }
}

// A map through a convolution; `add`, if any, is a map to be added to what comes out.
inline void convolve(const Convolution& c, const float* x, const float* add, float* out, int64_t threads) {
  const int64_t items = c.items(), N = c.outputs;
  const int64_t each = std::min(STRIP_ROWS, std::max<int64_t>(1, items / threads)), strips = up(items, each) / each;
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    const Strip s = with_scratch<3>([&](ScratchAllocator& p) { return Strip(p, c); });
    std::fill_n(s.nothing, c.inputs, 0.0f);
    const float* one = c.weights;
    const int64_t product = up(N, BLOCK_OUTPUTS) * c.depth();
    for (int64_t strip = me.begin(strips); strip < me.end(strips); strip++) {
      const int64_t begin = strip * each, n = std::min(each, items - begin);
      for (int64_t i = 0; i < n; i++) {
        if (c.kind == SAME) read_tile<4>(c, s, x, begin + i, i);
        if (c.kind == DOUBLED) read_tile<3>(c, s, x, begin + i, i);
        if (c.kind == HALVED) im2col(c, s, x, begin + i, i);
      }
      const float* from = c.kind == POINT ? x + begin * c.inputs : s.from;
      for (int64_t p = 0; p < c.products(); p++)
        matmul_packed(from + p * s.from_apart, c.depth(), n, one + p * product, c.depth(), N, s.to + p * s.to_apart);
      for (int64_t i = 0; i < n; i++) {
        if (c.kind == SAME)
          write_tile<4>(c, s, begin + i, i, add, out);
        else if (c.kind == DOUBLED)
          write_tile<3>(c, s, begin + i, i, add, out);
        else
          write_pixel(c, s, begin + i, i, add, out);
      }
    }
  }
}

struct GroupNorm {
  int64_t pixels, channels, groups, silu;  // silu: whether it comes behind
  double eps;
  const float *weight, *bias;
};

// Sums of pixels, and of their squares, less the first pixel of the map: squares of small numbers lose little.
inline void chunk_sums(const float* x, const float* first, int64_t pixels, int64_t channels, float* to) {
  for (int64_t k = 0; k < channels; k += 16) {
    V total = broadcast(0.0f), square = broadcast(0.0f);
    for (int64_t i = 0; i < pixels; i++) {
      const V v = load(x + i * channels + k) - load(first + k);
      total = total + v;
      square = fma(v, v, square);
    }
    store(to + k, total);
    store(to + channels + k, square);
  }
}

// Mean and scale of every channel, from the sums of all chunks.
inline void group_moments(const GroupNorm& g, const float* first, const float* sums, int64_t chunks, float* mean,
                          float* scale) {
  const int64_t C = g.channels, each = C / g.groups;
  for (int64_t from = 0; from < C; from += each) {
    double middle = 0, spread = 0;
    for (int pass = 0; pass < 2; pass++)
      for (int64_t c = from; c < from + each; c++) {
        double total = 0, square = 0;
        for (int64_t i = 0; i < chunks; i++) total += sums[2 * i * C + c], square += sums[(2 * i + 1) * C + c];
        const double own = total / double(g.pixels);
        if (pass == 0) {
          middle += (own + first[c]) / double(each);
        } else {
          const double off = own + first[c] - middle;
          spread += (square / double(g.pixels) - own * own + off * off) / double(each);
        }
      }
    for (int64_t c = from; c < from + each; c++)
      mean[c] = float(middle), scale[c] = float(g.weight[c] / std::sqrt(std::max(spread, 0.0) + g.eps));
  }
}

inline void group_norm(const GroupNorm& g, const float* x, float* out, int64_t threads) {
  const int64_t C = g.channels, chunks = up(g.pixels, SUMMED) / SUMMED;
  struct Buffers {
    float *sums, *mean, *scale;
  };
  const Buffers own = with_scratch([&](ScratchAllocator& p) {
    return Buffers{p.allocate<float>(chunks * 2 * C), p.allocate<float>(C), p.allocate<float>(C)};
  });
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    for (int64_t i = me.begin(chunks); i < me.end(chunks); i++)
      chunk_sums(x + i * SUMMED * C, x, std::min(SUMMED, g.pixels - i * SUMMED), C, own.sums + 2 * i * C);
    me.wait();
    if (!me.index) group_moments(g, x, own.sums, chunks, own.mean, own.scale);
    me.wait();
    for (int64_t i = me.begin(g.pixels); i < me.end(g.pixels); i++)
      for (int64_t k = 0; k < C; k += 16) {
        const V v = fma(load(x + i * C + k) - load(own.mean + k), load(own.scale + k), load(g.bias + k));
        store(out + i * C + k, g.silu ? silu(v) : v);
      }
  }
}

// exp(x - largest) / sum over `count` scores times `by`; zero behind them, up to `room`.
inline void softmax(float* x, int64_t count, int64_t thread_scratch, float by) {
  V peak = broadcast(-INFINITY), total = broadcast(0.0f);
  for (int64_t k = 0; k < count; k += 16) {
    const V s = load(x + k) * broadcast(by);
    store(x + k, s);
    peak = vmax(peak, first_n(count - k, s, broadcast(-INFINITY)));
  }
  const V top = broadcast(reduce_max(peak));
  for (int64_t k = 0; k < thread_scratch; k += 16) {
    const V e = first_n(std::max<int64_t>(count - k, 0), vexp(load(x + k) - top));
    store(x + k, e);
    total = total + e;
  }
  const V share = broadcast(1.0f / reduce_sum(total));
  for (int64_t k = 0; k < thread_scratch; k += 16) store(x + k, load(x + k) * share);
}

// Every place looks at all: queries, keys and values stand side by side, [places, 3 C]; out [places, C].
inline void spatial_attention(int64_t places, int64_t C, const float* qkv, float* out, int64_t threads) {
  const int64_t P = up(places, BLOCK_OUTPUTS), apart = 3 * C, ld = up(C, BLOCK_OUTPUTS);
  struct Buffers {
    float *keys, *values;  // packed: [P / 32, C, 32], [ld / 32, P, 32]
  };
  const Buffers own =
      with_scratch([&](ScratchAllocator& p) { return Buffers{p.allocate<float>(P * C), p.allocate<float>(P * ld)}; });
  const int64_t each = std::min(STRIP_ROWS, std::max<int64_t>(1, places / threads));
  const int64_t strips = up(places, each) / each;
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    for (int64_t p = me.begin(P); p < me.end(P); p++)
      for (int64_t c = 0; c < ld; c++) {
        const bool is = p < places && c < C;
        if (c < C) own.keys[(p / 32 * C + c) * 32 + p % 32] = is ? qkv[p * apart + C + c] : 0.0f;
        own.values[(c / 32 * P + p) * 32 + c % 32] = is ? qkv[p * apart + 2 * C + c] : 0.0f;
      }
    me.wait();
    struct Rooms {
      float *score, *made;
    };
    const Rooms s = with_scratch<3>(
        [&](ScratchAllocator& p) { return Rooms{p.allocate<float>(each * P), p.allocate<float>(each * ld)}; });
    for (int64_t strip = me.begin(strips); strip < me.end(strips); strip++) {
      const int64_t begin = strip * each, n = std::min(each, places - begin);
      matmul_packed(qkv + begin * apart, apart, n, own.keys, C, places, s.score);
      for (int64_t i = 0; i < n; i++) softmax(s.score + i * P, places, P, 1.0f / std::sqrt(float(C)));
      matmul_packed(s.score, P, n, own.values, P, C, s.made);
      for (int64_t i = 0; i < n; i++) std::copy_n(s.made + i * ld, C, out + (begin + i) * C);
    }
  }
}
