// What the kernels share: number formats, memory, teams of threads.
//
// All widths are multiples of 16. Sums run in one fixed order that knows nothing of other rows or of
// threads, so a row's result depends on the row alone.
#pragma once

#include <omp.h>
#include <sys/mman.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "simd.h"

enum Format : int64_t { FP32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline void prefetch_l1(const char* p) { __builtin_prefetch(p, 0, 3); }  // into the first cache
inline void prefetch_l2(const char* p) { __builtin_prefetch(p, 0, 2); }   // into the second

// Scratch of the calling thread, which stays for its next call, in huge pages; one for each use that others are
// called within.
template <int USE = 0>
inline char* thread_scratch(int64_t bytes) {
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
struct ScratchAllocator {
  char* next;
  template <typename T>
  T* allocate(int64_t count) {
    T* piece = (T*)next;
    next += up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
};

// What `layout` takes from such memory.
template <int USE = 0, typename F>
inline auto with_scratch(F layout) {
  ScratchAllocator counted{nullptr};
  layout(counted);
  ScratchAllocator pieces{thread_scratch<USE>((int64_t)counted.next)};
  return layout(pieces);
}

// Microseconds that a thread spins at a barrier; benchmarks/processors.py compares it with one that never sleeps.
#ifndef NEXTSTEP_SPIN
#define NEXTSTEP_SPIN 20
#endif

// What the threads of one parallel region share. Waiting for each other they spin for a moment, which is all it takes
// where every thread has a core, and sleep then: where cores are shared, a thread that spins uses up the time that the one
// it waits for needs. (The runtime's own barrier spins for milliseconds.)
struct Barrier {
  std::atomic<int32_t> arrived{0}, round{0}, sleeping{0};
  static constexpr int64_t SPIN = NEXTSTEP_SPIN;

  void wait(int64_t count) {
    const int32_t now = round.load();
    if (arrived.fetch_add(1) + 1 == count) {
      arrived.store(0);
      round.store(now + 1);
      if (sleeping.load()) wake();
      return;
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(SPIN);
    do {
      for (int i = 0; i < 16; i++) {
        if (round.load() != now) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < until);
    sleeping.fetch_add(1);
    while (round.load() == now) sleep(now);
    sleeping.fetch_sub(1);
  }

 private:
  static void pause() {
#if defined(__ARM_NEON)
    asm volatile("yield");
#else
    _mm_pause();
#endif
  }
#ifdef __linux__
  void sleep(int32_t now) { syscall(SYS_futex, &round, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &round, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(int32_t) { sched_yield(); }
  void wake() {}
#endif
};

// One thread of a team.
struct Worker {
  int64_t index, count;
  Barrier* barrier;
  explicit Worker(Barrier& barrier) : index(omp_get_thread_num()), count(omp_get_num_threads()), barrier(&barrier) {}
  // This member's share of `items`.
  int64_t begin(int64_t items) const { return items * index / count; }
  int64_t end(int64_t items) const { return items * (index + 1) / count; }
  void wait() const {
    if (count > 1) barrier->wait(count);
  }
};
