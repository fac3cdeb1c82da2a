// The flow head: modulations of one token for all its times, then one velocity after another.
//
// W head width, D values per token. A modulation has 3 W numbers a block (shift, scale, gate) and 2 W at
// the end (shift, scale); those of all blocks lie block by block, [rows, 3 W] each.
#pragma once

#include "product.h"

struct Block {
  Matrix modulation, inner, outer;
  const float *weight, *bias;  // of the norm
};

struct Head {
  int64_t width, token, count;
  double eps;
  const Block* blocks;
  Matrix input, modulation, last;
};

// to = (norm(x) * weight + bias) * (1 + scale) + shift; without weight (and bias) the norm alone.
inline void modulated(const float* x, int64_t width, float eps, const float* weight, const float* bias,
                      const float* shift, const float* scale, float* to) {
  V total = all(0.0f), square = all(0.0f);
  for (int64_t k = 0; k < width; k += 16) total = _mm512_add_ps(total, load(x + k));
  const V mean = all(sum(total) / float(width));
  for (int64_t k = 0; k < width; k += 16) {
    V v = _mm512_sub_ps(load(x + k), mean);
    square = _mm512_fmadd_ps(v, v, square);
  }
  const V by = all(1.0f / std::sqrt(sum(square) / float(width) + eps));
  for (int64_t k = 0; k < width; k += 16) {
    V v = _mm512_mul_ps(_mm512_sub_ps(load(x + k), mean), by);
    if (weight) v = _mm512_fmadd_ps(v, load(weight + k), load(bias + k));
    store(to + k, _mm512_fmadd_ps(v, _mm512_add_ps(all(1.0f), load(scale + k)), load(shift + k)));
  }
}

// Modulations of y [rows, W], times plus conditions.
inline void modulate(const Head& head, int64_t rows, const float* y, float* out, int64_t threads) {
  auto lay = [&](Pieces& pieces) {
    return Rows(pieces, head.modulation.format, rows, head.width);
  };
  Pieces counted{nullptr};
  lay(counted);
  Pieces pieces{room((int64_t)counted.next)};
  const Rows own = lay(pieces);
#pragma omp parallel num_threads(threads)
  {
    const Member me{omp_get_thread_num(), omp_get_num_threads()};
    for (int64_t r = me.begin(rows); r < me.end(rows); r++) {
      for (int64_t k = 0; k < head.width; k += 16)
        store(own.row(r) + k, silu(load(y + r * head.width + k)));
      own.prepare(r);
    }
    me.wait();
    for (int64_t b = 0; b < head.count; b++)
      product(me, own, head.blocks[b].modulation, out + b * rows * 3 * head.width, 3 * head.width);
    product(me, own, head.modulation, out + head.count * rows * 3 * head.width, 2 * head.width);
  }
}

// v [n, D] at x [n, D]; row r uses modulation which[r] of `rows`.
inline void velocity(const Head& head, int64_t n, const float* x, const int64_t* which, int64_t rows,
                     const float* modulations, float* v, int64_t threads) {
  const int64_t W = head.width;
  const Matrix& first = head.count ? head.blocks[0].inner : head.last;
  struct Room {
    Rows token, inner, outer, last;
    float *state, *made;
  };
  auto lay = [&](Pieces& p) {
    return Room{Rows(p, head.input.format, n, head.token), Rows(p, first.format, n, W),
                Rows(p, head.count ? head.blocks[0].outer.format : first.format, n, W),
                Rows(p, head.last.format, n, W), p.take<float>(n * W), p.take<float>(n * W)};
  };
  Pieces counted{nullptr};
  lay(counted);
  Pieces pieces{room((int64_t)counted.next)};
  const Room own = lay(pieces);
#pragma omp parallel num_threads(threads)
  {
    const Member me{omp_get_thread_num(), omp_get_num_threads()};
    const int64_t begin = me.begin(n), end = me.end(n);
    for (int64_t r = begin; r < end; r++) {
      std::copy_n(x + r * head.token, head.token, own.token.row(r));
      own.token.prepare(r);
    }
    me.wait();
    product(me, own.token, head.input, own.state, W);
    me.wait();
    for (int64_t b = 0; b <= head.count; b++) {
      const Block* block = b < head.count ? head.blocks + b : nullptr;
      const Rows& to = block ? own.inner : own.last;
      for (int64_t r = begin; r < end; r++) {
        float* h = own.state + r * W;
        if (b) {
          const float* gate = modulations + ((b - 1) * rows + which[r]) * 3 * W + 2 * W;
          for (int64_t k = 0; k < W; k += 16)
            store(h + k, _mm512_fmadd_ps(load(gate + k), load(own.made + r * W + k), load(h + k)));
        }
        const float* shift = modulations + b * rows * 3 * W + which[r] * (block ? 3 : 2) * W;
        modulated(h, W, float(head.eps), block ? block->weight : nullptr,
                  block ? block->bias : nullptr, shift, shift + W, to.row(r));
        to.prepare(r);
      }
      me.wait();
      if (!block) break;
      product(me, own.inner, block->inner, own.made, W);
      me.wait();
      for (int64_t r = begin; r < end; r++) {
        for (int64_t k = 0; k < W; k += 16)
          store(own.outer.row(r) + k, silu(load(own.made + r * W + k)));
        own.outer.prepare(r);
      }
      me.wait();
      product(me, own.outer, block->outer, own.made, W);
      me.wait();
    }
    product(me, own.last, head.last, v, head.token);
  }
}
