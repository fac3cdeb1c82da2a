// What the kernels share: number formats, memory, teams of threads.
//
// All widths are multiples of 16. Sums run in one fixed order that knows nothing of other rows or of
// threads, so a row's result depends on the row alone.
#pragma once

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "simd.h"

enum Format : int64_t { FP32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline void ask_near(const char* p) { __builtin_prefetch(p, 0, 3); }  // into the first cache
inline void ask_far(const char* p) { __builtin_prefetch(p, 0, 2); }   // into the second

// Scratch of the calling thread, which stays for its next call, in huge pages; one for each use that others are
// called within.
template <int USE = 0>
inline char* room(int64_t bytes) {
  constexpr int64_t PAGE = 1 << 21;
  thread_local std::unique_ptr<char, decltype(&free)> memory = {nullptr, free};
  thread_local int64_t size = 0;
  if (bytes > size) {
    size = up(bytes, PAGE);
    memory.reset((char*)aligned_alloc(PAGE, size));
#ifdef MADV_HUGEPAGE
    madvise(memory.get(), size, MADV_HUGEPAGE);
#endif
  }
  return memory.get();
}

// Hands out aligned pieces of such memory; from nullptr on it only counts.
struct Pieces {
  char* next;
  template <typename T>
  T* take(int64_t count) {
    T* piece = (T*)next;
    next += up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
};

// What `lay` takes from such memory.
template <int USE = 0, typename F>
inline auto laid(F lay) {
  Pieces counted{nullptr};
  lay(counted);
  Pieces pieces{room<USE>((int64_t)counted.next)};
  return lay(pieces);
}

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
