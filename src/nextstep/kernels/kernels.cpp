#include "backbone.h"
#include "feature_map.h"
#include "head.h"

#pragma GCC visibility push(default)
extern "C" {

// out [n, outputs] of x [n, inputs].
void nextstep_linear(const Matrix* matrix, int64_t n, const float* x, float* out, int64_t threads) {
  const Activations own =
      with_scratch([&](ScratchAllocator& p) { return Activations(p, matrix->format, n, matrix->inputs); });
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Worker me(barrier);
    for (int64_t r = me.begin(n); r < me.end(n); r++) {
      std::copy_n(x + r * matrix->inputs, matrix->inputs, own.row(r));
      own.prepare(r);
    }
    me.wait();
    matmul(me, own, *matrix, out, matrix->outputs);
  }
}

// One new position of n rows; see `backbone_step`.
void nextstep_backbone_step(const Backbone* net, int64_t n, const Place* places, float* x, int64_t threads) {
  backbone_step(*net, n, places, x, threads);
}

// The next token [count, D] of every picture; see `sample`.
void nextstep_sample(const Head* head, int64_t count, const Picture* pictures, int64_t most, float* tokens,
                     int64_t threads) {
  sample(*head, count, pictures, most, tokens, threads);
}

// A map through a convolution; see `convolve`.
void nextstep_convolve(const Convolution* c, const float* x, const float* add, float* out, int64_t threads) {
  convolve(*c, x, add, out, threads);
}

void nextstep_group_norm(const GroupNorm* g, const float* x, float* out, int64_t threads) {
  group_norm(*g, x, out, threads);
}

void nextstep_spatial_attention(int64_t places, int64_t channels, const float* qkv, float* out, int64_t threads) {
  spatial_attention(places, channels, qkv, out, threads);
}

// LayerNorm without weights of each row, in place.
void nextstep_layer_norm(int64_t rows, int64_t width, const double* eps, float* x, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++) layer_norm(x + r * width, width, float(*eps));
}

// How often values have each high byte; counts[256]: how many are not bf16.
void nextstep_count_bytes(const Bf16Compressor* from, int64_t* counts, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    int64_t own[257] = {};
#pragma omp for
    for (int64_t n = 0; n < from->blocks; n++)
      for (int64_t i = 0; i < from->count; i++) {
        own[from->bits(n, i) >> 8]++;
        own[256] += from->lost(n, i);
      }
#pragma omp critical
    for (int i = 0; i < 257; i++) counts[i] += own[i];
  }
}

// Sets where each block's outliers begin.
void nextstep_count_outliers(const Bf16Compressor* from, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < from->blocks; n++) {
    from->first[n + 1] = 0;
    for (int64_t i = 0; i < from->count; i++) from->first[n + 1] += from->codes[from->bits(n, i) >> 8] > 15;
  }
  from->first[0] = 0;
  for (int64_t n = 0; n < from->blocks; n++) from->first[n + 1] += from->first[n];
}

void nextstep_compress(const Bf16Compressor* from, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < from->blocks; n++) from->block(n);
}

}  // extern "C"
