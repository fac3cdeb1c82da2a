// One new position of every row through the backbone.
//
// E hidden size, H query heads, G key/value heads, d head size, M MLP width, n rows. A row has its own
// cache; its keys are stored at `position` before any row looks, and it looks from `first` up to itself.
#pragma once

#include "product.h"

struct Layer {
  Matrix query, key, value, output, gate, up, down;
  const float *before, *behind;  // weights of the two norms
};

struct Backbone {
  int64_t layers, E, H, G, d, M, half;  // half: whether caches hold bf16
  double eps;
  const Layer* own;
  const float* norm;
};

struct Place {
  char* cache;  // keys of layer 0, head 0
  int64_t head, value, layer;  // numbers from head to head, from keys to values, from layer to layer
  int64_t first, position;
  const float* angles;  // cosines [d], sines [d]
};

inline void rms_norm(const float* x, int64_t width, float eps, const float* weight, float* to) {
  V square = broadcast(0.0f);
  for (int64_t k = 0; k < width; k += 16) {
    const V v = load(x + k);
    square = fma(v, v, square);
  }
  const V by = broadcast(1.0f / std::sqrt(reduce_sum(square) / float(width) + eps));
  for (int64_t k = 0; k < width; k += 16) store(to + k, load(x + k) * by * load(weight + k));
}

inline void add_to(float* x, const float* more, int64_t width) {
  for (int64_t k = 0; k < width; k += 16) store(x + k, load(x + k) + load(more + k));
}

// Rotary positions, halves of a head together; x and to may be the same.
template <typename T>
inline void rope(const float* x, const float* angles, int64_t d, T* to) {
  const float *cos = angles, *sin = angles + d;
  const int64_t half = d / 2;
  for (int64_t k = 0; k < half; k += 16) {
    const int64_t left = half - k;
    auto some = [&](const float* p) { return load(p + k, left); };
    const V a = some(x), b = some(x + half);
    const V first = fma(-b, some(sin), a * some(cos));
    const V second = fma(a, some(sin + half), b * some(cos + half));
    store(to + k, first, left);
    store(to + half + k, second, left);
  }
}

// One query head: q [d] over keys and values [T, d]; `score` has room for T filled up to 16.
template <typename C>
inline void attend(const float* q, const C* keys, const C* values, int64_t T, int64_t d, float* score,
                   float* out) {
  const V by = broadcast(1.0f / std::sqrt(float(d)));
  V peak = broadcast(-INFINITY);
  for (int64_t t = 0; t < T; t += 16) {
    V dots[16];
    for (int64_t i = 0; i < 16; i++) {
      const C* key = keys + std::min(t + i, T - 1) * d;
      dots[i] = load(q) * load(key);
      for (int64_t k = 16; k < d; k += 16) dots[i] = fma(load(q + k), load(key + k), dots[i]);
    }
    const V s = reduce_sums(dots) * by;
    store(score + t, s);
    peak = vmax(peak, s);  // those behind the last repeat it
  }
  const V top = broadcast(reduce_max(peak));
  V total = broadcast(0.0f);
  for (int64_t t = 0; t < T; t += 16) {
    const V e = first_n(T - t, vexp(load(score + t) - top));
    store(score + t, e);
    total = total + e;
  }
  const V share = broadcast(1.0f / reduce_sum(total));
  for (int64_t k = 0; k < d; k += 16) {
    V o = broadcast(0.0f);
    for (int64_t t = 0; t < T; t++) o = fma(broadcast(score[t]), load(values + t * d + k), o);
    store(out + k, o * share);
  }
}

struct BackboneScratch {
  Activations into, attended, between, down;
  float *q, *k, *v, *gate, *up, *made, *score;
  int64_t longest;

  BackboneScratch(ScratchAllocator& p, const Backbone& net, int64_t n, int64_t longest, int64_t threads)
      : into(p, net.own[0].query.format, n, net.E),
        attended(p, net.own[0].output.format, n, net.H * net.d),
        between(p, net.own[0].gate.format, n, net.E),
        down(p, net.own[0].down.format, n, net.M),
        longest(longest) {
    q = p.allocate<float>(n * net.H * net.d);
    k = p.allocate<float>(n * net.G * net.d);
    v = p.allocate<float>(n * net.G * net.d);
    gate = p.allocate<float>(n * net.M);
    up = p.allocate<float>(n * net.M);
    made = p.allocate<float>(n * net.E);
    score = p.allocate<float>(threads * longest);
  }
};

// Turns and stores keys and values of one row and head; `C` is what caches hold.
template <typename C>
inline void store_kv(const Backbone& net, const BackboneScratch& s, int64_t layer, const Place& place, int64_t r,
                 int64_t g) {
  const int64_t d = net.d, at = (r * net.G + g) * d, each = net.H / net.G;
  C* keys = (C*)place.cache + layer * place.layer + g * place.head + place.position * d;
  rope(s.k + at, place.angles, d, keys);
  for (int64_t k = 0; k < d; k += 16) store(keys + place.value + k, load(s.v + at + k));
  for (int64_t h = g * each; h < (g + 1) * each; h++) {
    float* q = s.q + (r * net.H + h) * d;
    rope(q, place.angles, d, q);
  }
}

template <typename C>
inline void attend_head(const Backbone& net, const BackboneScratch& s, int64_t layer, const Place& place, int64_t r,
                 int64_t h, float* score) {
  const int64_t d = net.d, g = h / (net.H / net.G);
  const C* keys = (const C*)place.cache + layer * place.layer + g * place.head + place.first * d;
  attend(s.q + (r * net.H + h) * d, keys, keys + place.value, place.position + 1 - place.first, d, score,
         s.attended.row(r) + h * d);
}

// x [n, E] are embeddings and become the states behind the last norm.
inline void backbone_step(const Backbone& net, int64_t n, const Place* places, float* x, int64_t threads) {
  int64_t longest = 0;
  for (int64_t r = 0; r < n; r++)
    longest = std::max(longest, up(places[r].position + 1 - places[r].first, 16));
  const BackboneScratch s =
      with_scratch([&](ScratchAllocator& p) { return BackboneScratch(p, net, n, longest, threads); });
  const int64_t E = net.E, M = net.M, d = net.d;
  const float eps = float(net.eps);
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    const int64_t begin = me.begin(n), end = me.end(n);
    for (int64_t l = 0; l < net.layers; l++) {
      const Layer& own = net.own[l];
      for (int64_t r = begin; r < end; r++) {
        if (l) add_to(x + r * E, s.made + r * E, E);
        rms_norm(x + r * E, E, eps, own.before, s.into.row(r));
        s.into.prepare(r);
      }
      me.wait();
      matmul(me, s.into, own.query, s.q, net.H * d);
      matmul(me, s.into, own.key, s.k, net.G * d);
      matmul(me, s.into, own.value, s.v, net.G * d);
      me.wait();
      for (int64_t i = me.begin(n * net.G); i < me.end(n * net.G); i++) {
        const int64_t r = i / net.G, g = i % net.G;
        net.half ? store_kv<bf16>(net, s, l, places[r], r, g) : store_kv<float>(net, s, l, places[r], r, g);
      }
      me.wait();
      float* score = s.score + me.index * longest;
      for (int64_t i = me.begin(n * net.H); i < me.end(n * net.H); i++) {
        const int64_t r = i / net.H, h = i % net.H;
        net.half ? attend_head<bf16>(net, s, l, places[r], r, h, score)
                 : attend_head<float>(net, s, l, places[r], r, h, score);
      }
      me.wait();
      for (int64_t r = begin; r < end; r++) s.attended.prepare(r);
      me.wait();
      matmul(me, s.attended, own.output, s.made, E);
      me.wait();
      for (int64_t r = begin; r < end; r++) {
        add_to(x + r * E, s.made + r * E, E);
        rms_norm(x + r * E, E, eps, own.behind, s.between.row(r));
        s.between.prepare(r);
      }
      me.wait();
      matmul(me, s.between, own.gate, s.gate, M);
      matmul(me, s.between, own.up, s.up, M);
      me.wait();
      for (int64_t r = begin; r < end; r++) {
        for (int64_t k = 0; k < M; k += 16)
          store(s.down.row(r) + k, silu(load(s.gate + r * M + k)) * load(s.up + r * M + k));
        s.down.prepare(r);
      }
      me.wait();
      matmul(me, s.down, own.down, s.made, E);
      me.wait();
    }
    for (int64_t r = begin; r < end; r++) {
      add_to(x + r * E, s.made + r * E, E);
      rms_norm(x + r * E, E, eps, net.norm, x + r * E);
    }
  }
}
