#include "backbone.h"
#include "head.h"

#pragma GCC visibility push(default)
extern "C" {

void nextstep_linear(const Matrix* matrix, int64_t n, const float* x, float* out, int64_t threads) {
  auto lay = [&](Pieces& pieces) { return Rows(pieces, matrix->format, n, matrix->inputs); };
  Pieces counted{nullptr};
  lay(counted);
  Pieces pieces{room((int64_t)counted.next)};
  const Rows own = lay(pieces);
#pragma omp parallel num_threads(threads)
  {
    const Member me{omp_get_thread_num(), omp_get_num_threads()};
    for (int64_t r = me.begin(n); r < me.end(n); r++) {
      std::copy_n(x + r * matrix->inputs, matrix->inputs, own.row(r));
      own.prepare(r);
    }
    me.wait();
    product(me, own, *matrix, out, matrix->outputs);
  }
}

void nextstep_advance(const Backbone* net, int64_t n, const Place* places, float* x, int64_t threads) {
  advance(*net, n, places, x, threads);
}

void nextstep_modulate(const Head* head, int64_t rows, const float* y, float* out, int64_t threads) {
  modulate(*head, rows, y, out, threads);
}

void nextstep_solve(const Head* head, int64_t count, const Picture* pictures, int64_t from, int64_t to,
                    int64_t rows, const float* modulations, int64_t threads) {
  solve(*head, count, pictures, from, to, rows, modulations, threads);
}

// Tokens [count, D] that the pictures' solvers end with.
void nextstep_tokens(const Head* head, int64_t count, const Picture* pictures, float* tokens, int64_t) {
  for (int64_t p = 0; p < count; p++)
    reached(pictures[p], pictures[p].calls, head->token, tokens + p * head->token);
}

// How often values have each high byte; counts[256]: how many are not bf16.
void nextstep_count_bytes(const Squeezer* from, int64_t* counts, int64_t threads) {
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

// Sets where each block's patches begin.
void nextstep_count_patches(const Squeezer* from, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < from->blocks; n++) {
    from->first[n + 1] = 0;
    for (int64_t i = 0; i < from->count; i++) from->first[n + 1] += from->codes[from->bits(n, i) >> 8] > 15;
  }
  from->first[0] = 0;
  for (int64_t n = 0; n < from->blocks; n++) from->first[n + 1] += from->first[n];
}

void nextstep_squeeze(const Squeezer* from, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < from->blocks; n++) from->block(n);
}

}  // extern "C"
