// What the kernels share: vectors of 16, matrix tiles, memory, barriers.
//
// All widths are multiples of 16. Sums run in one fixed order that knows nothing of other rows or of
// threads, so a row's result depends on the row alone.
#pragma once

#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>

using bf16 = uint16_t;
using V = __m512;

enum Format : int64_t { FP32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

inline V all(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline V load(const bf16* p) {
  __m256i half = _mm256_loadu_si256((const __m256i*)p);
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
// To nearest, halves to even; numbers too small for a normal one become zero.
inline __m256i rounded(V v) {
#ifdef __AMX_TILE__
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i bits = (__m512i)v, size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
  const __mmask16 none = _mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(0x7f800000));
  up = _mm512_mask_or_epi32(up, none, bits, _mm512_set1_epi32(0x400000));
  const __mmask16 small = _mm512_cmplt_epi32_mask(size, _mm512_set1_epi32(0x800000));
  up = _mm512_mask_and_epi32(up, small, bits, _mm512_set1_epi32(0x80000000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
}
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline void store(bf16* p, V v) { _mm256_storeu_si256((__m256i*)p, rounded(v)); }
inline void store(float* p, V v, __mmask16 there) { _mm512_mask_storeu_ps(p, there, v); }
inline void store(bf16* p, V v, __mmask16 there) {
  _mm256_mask_storeu_epi16(p, there, rounded(v));
}
inline float sum(V v) { return _mm512_reduce_add_ps(v); }

// exp to 2 ulp (Cephes' polynomial for the rest); what is no number stays so.
inline V exponential(V x) {
  x = _mm512_max_ps(all(-87.0f), _mm512_min_ps(all(88.0f), x));
  V n = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), 8);
  V r = _mm512_fnmadd_ps(n, all(0.693359375f), x);
  r = _mm512_fmadd_ps(n, all(2.12194440e-4f), r);
  V p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                  5.0000001201e-1f, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, all(c));
  return _mm512_scalef_ps(p, n);
}

inline V silu(V x) {
  V e = exponential(_mm512_sub_ps(all(0.0f), x));
  return _mm512_div_ps(x, _mm512_add_ps(all(1.0f), e));
}

// Sums of 16 vectors, one in each place.
inline V sums(const V in[16]) {
  V a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(in[i], in[i + 8]), _mm512_unpackhi_ps(in[i], in[i + 8]));
  for (int i = 0; i < 4; i++)
    b[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[i], a[i + 4]), _mm512_unpackhi_ps(a[i], a[i + 4]));
  // Each vector holds four partial sums of four vectors; the quarters are added next.
  for (int i = 0; i < 2; i++)
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[i], b[i + 2], 0x88),
                         _mm512_shuffle_f32x4(b[i], b[i + 2], 0xdd));
  V d = _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88),
                      _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
  return _mm512_permutexvar_ps(order, d);
}

// Scratch of the calling thread, which stays for its next call, in huge pages.
inline char* room(int64_t bytes) {
  constexpr int64_t PAGE = 1 << 21;
  thread_local std::unique_ptr<char, decltype(&free)> memory = {nullptr, free};
  thread_local int64_t size = 0;
  if (bytes > size) {
    size = (bytes + PAGE - 1) / PAGE * PAGE;
    memory.reset((char*)aligned_alloc(PAGE, size));
    madvise(memory.get(), size, MADV_HUGEPAGE);
  }
  return memory.get();
}

// Hands out aligned pieces of such memory; from nullptr on it only counts.
struct Pieces {
  char* next;
  template <typename T>
  T* take(int64_t count) {
    T* piece = (T*)next;
    next += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
};

// One thread of a team.
struct Member {
  int64_t index, count;
  // This member's share of `items`.
  int64_t begin(int64_t items) const { return items * index / count; }
  int64_t end(int64_t items) const { return items * (index + 1) / count; }
  void wait() const {
    if (count > 1) {
#pragma omp barrier
    }
  }
};
