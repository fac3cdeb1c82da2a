// The flow head: modulations of one token for all its times, then one velocity after another.
//
// E hidden size, W head width, D values per token. A modulation has 3 W numbers a block (shift, scale, gate) and 2 W at
// the end (shift, scale); those of all blocks lie block by block, [rows, 3 W] each.
#pragma once

#include "product.h"

struct Block {
  Matrix modulation, inner, outer;
  const float *weight, *bias;  // of the norm
};

struct Head {
  int64_t hidden, width, token, count;
  double eps, token_eps;
  const Block* blocks;
  Matrix output, condition, input, modulation, last;
};

// Mean and scale of a LayerNorm over `width` numbers.
struct Moments {
  V mean, by;

  Moments(const float* x, int64_t width, float eps) {
    V total = broadcast(0.0f), square = broadcast(0.0f);
    for (int64_t k = 0; k < width; k += 16) total = total + load(x + k);
    mean = broadcast(reduce_sum(total) / float(width));
    for (int64_t k = 0; k < width; k += 16) {
      const V v = load(x + k) - mean;
      square = fma(v, v, square);
    }
    by = broadcast(1.0f / std::sqrt(reduce_sum(square) / float(width) + eps));
  }
  V normalised(const float* x) const { return (load(x) - mean) * by; }
};

// LayerNorm without weights, in place.
inline void layer_norm(float* x, int64_t width, float eps) {
  const Moments own(x, width, eps);
  for (int64_t k = 0; k < width; k += 16) store(x + k, own.normalised(x + k));
}

// to = (norm(x) * weight + bias) * (1 + scale) + shift; without weight (and bias) the norm alone.
inline void adaln(const float* x, int64_t width, float eps, const float* weight, const float* bias,
                      const float* shift, const float* scale, float* to) {
  const Moments own(x, width, eps);
  for (int64_t k = 0; k < width; k += 16) {
    V v = own.normalised(x + k);
    if (weight) v = fma(v, load(weight + k), load(bias + k));
    store(to + k, fma(v, broadcast(1.0f) + load(scale + k), load(shift + k)));
  }
}

// A row of modulations: one branch of a picture at one time.
struct ModulationRow {
  const float *time, *condition;  // embedded, [W]
};

// Modulations of `rows` moments.
inline void modulations_of(const Head& head, int64_t rows, const ModulationRow* moments, float* out, int64_t threads) {
  const int64_t W = head.width;
  const Activations own =
      with_scratch([&](ScratchAllocator& p) { return Activations(p, head.modulation.format, rows, W); });
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    for (int64_t r = me.begin(rows); r < me.end(rows); r++) {
      const ModulationRow& at = moments[r];
      for (int64_t k = 0; k < W; k += 16) store(own.row(r) + k, silu(load(at.time + k) + load(at.condition + k)));
      own.prepare(r);
    }
    me.wait();
    for (int64_t b = 0; b < head.count; b++)
      matmul(me, own, head.blocks[b].modulation, out + b * rows * 3 * W, 3 * W);
    matmul(me, own, head.modulation, out + head.count * rows * 3 * W, 2 * W);
  }
}

// A picture whose token is integrated. Its solver is linear in draws and velocities: where it asks, and
// what it ends with, are sums of what is known by then, with coefficients [calls + 1, known].
struct Picture {
  const float* coefficients;
  int64_t draws, calls, branches;
  const float* weights;  // of the branches
  float* known;          // [draws + calls, D]: draws, then mixed velocities
  const float* hidden;   // states of the branches [branches, E]
  const float* times;    // embedded [calls, W]
  int64_t normalise;     // whether its token is
};

// Room for one evaluation of n rows.
struct HeadScratch {
  Activations token, inner, outer, last;
  float *state, *made, *velocity;
  int64_t *owner, *which;  // picture and row of the modulations of every row

  HeadScratch(ScratchAllocator& p, const Head& head, int64_t n)
      : token(p, head.input.format, n, head.token),
        inner(p, head.blocks[0].inner.format, n, head.width),
        outer(p, head.blocks[0].outer.format, n, head.width),
        last(p, head.last.format, n, head.width) {
    state = p.allocate<float>(n * head.width);
    made = p.allocate<float>(n * head.width);
    velocity = p.allocate<float>(n * head.token);
    owner = p.allocate<int64_t>(n);
    which = p.allocate<int64_t>(n);
  }
  void shrink(int64_t n) { token.count = inner.count = outer.count = last.count = n; }
};

// Velocities of the pass' tokens, which are prepared; `rows` modulations.
inline void head_velocities(const Worker& me, const Head& head, const HeadScratch& own, int64_t rows,
                    const float* modulations) {
  const int64_t W = head.width, begin = me.begin(own.token.count), end = me.end(own.token.count);
  matmul(me, own.token, head.input, own.state, W);
  me.wait();
  for (int64_t b = 0; b <= head.count; b++) {
    const Block* block = b < head.count ? head.blocks + b : nullptr;
    const Activations& to = block ? own.inner : own.last;
    for (int64_t r = begin; r < end; r++) {
      float* h = own.state + r * W;
      if (b) {
        const float* gate = modulations + ((b - 1) * rows + own.which[r]) * 3 * W + 2 * W;
        for (int64_t k = 0; k < W; k += 16)
          store(h + k, fma(load(gate + k), load(own.made + r * W + k), load(h + k)));
      }
      const float* shift = modulations + b * rows * 3 * W + own.which[r] * (block ? 3 : 2) * W;
      adaln(h, W, float(head.eps), block ? block->weight : nullptr, block ? block->bias : nullptr,
                shift, shift + W, to.row(r));
      to.prepare(r);
    }
    me.wait();
    if (!block) break;
    matmul(me, own.inner, block->inner, own.made, W);
    if (own.outer.format <= BF16 && !split_by_rows(me, own.inner, block->inner)) {
      // What this member made lies in its cache: it prepares it itself, values standing alone.
      const int64_t blocks = (W + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS;
      for (int64_t k = BLOCK_OUTPUTS * me.begin(blocks); k < BLOCK_OUTPUTS * me.end(blocks); k += 16)
        for (int64_t r = 0; r < own.outer.count; r++)
          own.outer.put(r, k, k < W ? silu(load(own.made + r * W + k)) : broadcast(0.0f));
    } else {
      me.wait();
      for (int64_t r = begin; r < end; r++) {
        for (int64_t k = 0; k < W; k += 16) store(own.outer.row(r) + k, silu(load(own.made + r * W + k)));
        own.outer.prepare(r);
      }
    }
    me.wait();
    matmul(me, own.outer, block->outer, own.made, W);
    me.wait();
  }
  matmul(me, own.last, head.last, own.velocity, head.token);
}

// The sum of what picture p knows that its solver asks at, or ends with, after `calls` velocities.
inline void solver_state(const Picture& p, int64_t calls, int64_t token, float* x) {
  const float* c = p.coefficients + calls * (p.draws + p.calls);
  for (int64_t k = 0; k < token; k += 16) {
    V sum = broadcast(0.0f);
    for (int64_t i = 0; i < p.draws + calls; i++)
      sum = fma(broadcast(c[i]), load(p.known + i * token + k), sum);
    store(x + k, sum);
  }
}

// Calls from `from` up to `to` of all pictures that have so many. Modulations lie call by call, picture
// by picture, branch by branch.
inline void solver_steps(const Head& head, int64_t count, const Picture* pictures, int64_t from, int64_t to,
                  int64_t rows, const float* modulations, int64_t threads) {
  int64_t most = 0;
  for (int64_t p = 0; p < count; p++) most += pictures[p].branches;
  const HeadScratch whole = with_scratch([&](ScratchAllocator& p) { return HeadScratch(p, head, most); });
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    HeadScratch own = whole;
    for (int64_t call = from, first = 0; call < to; call++) {
      int64_t n = 0;
      for (int64_t p = 0; p < count; p++)
        for (int64_t b = 0; b < pictures[p].branches && call < pictures[p].calls; b++, n++)
          if (!me.index) own.owner[n] = p, own.which[n] = first + n;
      own.shrink(n);
      first += n;
      me.wait();
      for (int64_t r = me.begin(n); r < me.end(n); r++) {
        solver_state(pictures[own.owner[r]], call, head.token, own.token.row(r));
        own.token.prepare(r);
      }
      me.wait();
      head_velocities(me, head, own, rows, modulations);
      me.wait();
      for (int64_t p = 0, r = 0; p < count && !me.index; p++) {
        const Picture& picture = pictures[p];
        if (call >= picture.calls) continue;
        float* mixed = picture.known + (picture.draws + call) * head.token;
        for (int64_t k = 0; k < head.token; k += 16) {
          V sum = broadcast(0.0f);
          for (int64_t b = 0; b < picture.branches; b++)
            sum = fma(broadcast(picture.weights[b]), load(own.velocity + (r + b) * head.token + k), sum);
          store(mixed + k, sum);
        }
        r += picture.branches;
      }
      me.wait();
    }
  }
}

// Embedded conditions [rows, W] of the states of all pictures' branches.
inline void embed_conditions(const Head& head, int64_t count, const Picture* pictures, int64_t rows, float* out,
                       int64_t threads) {
  struct Stages {
    Activations first, second;
  };
  const Stages own = with_scratch([&](ScratchAllocator& p) {
    return Stages{Activations(p, head.output.format, rows, head.hidden),
                  Activations(p, head.condition.format, rows, head.hidden)};
  });
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    for (int64_t p = 0, r = 0; p < count; p++)
      for (int64_t b = 0; b < pictures[p].branches; b++, r++)
        if (r >= me.begin(rows) && r < me.end(rows)) {
          std::copy_n(pictures[p].hidden + b * head.hidden, head.hidden, own.first.row(r));
          own.first.prepare(r);
        }
    me.wait();
    matmul(me, own.first, head.output, own.second.values, own.second.apart);
    me.wait();
    for (int64_t r = me.begin(rows); r < me.end(rows); r++) own.second.prepare(r);
    me.wait();
    matmul(me, own.second, head.condition, out, head.width);
  }
}

// The next token of every picture, [count, D]; modulations of about `most` moments are kept at once.
inline void sample(const Head& head, int64_t count, const Picture* pictures, int64_t most, float* tokens,
                   int64_t threads) {
  int64_t branches = 0, calls = 0, moments = 0;
  for (int64_t p = 0; p < count; p++) {
    branches += pictures[p].branches;
    calls = std::max(calls, pictures[p].calls);
    moments += pictures[p].branches * pictures[p].calls;
  }
  moments = std::min(moments, most + branches);
  struct Buffers {
    float* condition;
    ModulationRow* at;
  };
  const Buffers own = with_scratch<1>([&](ScratchAllocator& p) {
    return Buffers{p.allocate<float>(branches * head.width), p.allocate<ModulationRow>(moments)};
  });
  float* modulations = (float*)thread_scratch<2>(4 * moments * head.width * (3 * head.count + 2));
  embed_conditions(head, count, pictures, branches, own.condition, threads);
  for (int64_t from = 0, to = 0; from < calls; from = to) {
    int64_t rows = 0;
    for (; to < calls && rows < most; to++) {
      const float* condition = own.condition;
      for (int64_t p = 0; p < count; condition += pictures[p++].branches * head.width)
        for (int64_t b = 0; b < pictures[p].branches && to < pictures[p].calls; b++)
          own.at[rows++] = {pictures[p].times + to * head.width, condition + b * head.width};
    }
    modulations_of(head, rows, own.at, modulations, threads);
    solver_steps(head, count, pictures, from, to, rows, modulations, threads);
  }
  for (int64_t p = 0; p < count; p++) {
    float* token = tokens + p * head.token;
    solver_state(pictures[p], pictures[p].calls, head.token, token);
    if (pictures[p].normalise) layer_norm(token, head.token, float(head.token_eps));
  }
}
