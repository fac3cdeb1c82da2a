// Products of few rows with packed matrices, each weight read once.
//
// A matrix [outputs, inputs] lies in blocks of 32 outputs, each one stream from its first input to its
// last (see packing.py), FP32 and BF16 perhaps compressed (see lossless_bf16.h).
#pragma once

#ifdef NEXTSTEP_TILES
#include "matrix_unit.h"
#else
#include "vector_product.h"
#endif

// Whether a product is shared out by rows, which then fit a core's own cache, instead of by outputs.
inline bool split_by_rows(const Worker& me, const Activations& x, const Matrix& m) {
#ifdef NEXTSTEP_TILES
  return (m.format == BF16 || m.format == INT8) && x.tile_count() >= 4 * me.count;
#else
  return false;
#endif
}

// out [count, outputs] with rows `ld` apart: this member's share.
inline void matmul(const Worker& me, const Activations& x, const Matrix& m, float* out, int64_t ld) {
  const int64_t blocks = up(m.outputs, BLOCK_OUTPUTS) / BLOCK_OUTPUTS, begin = me.begin(blocks), end = me.end(blocks);
  if (m.format == FP32) {
    for (int64_t n = begin; n < end; n++) vector_block(x, m, n, out, ld);
    return;
  }
  const FlushDenormals flushing;
#ifdef NEXTSTEP_TILES
  if (m.format == INT4) return group_blocks(x, m, begin, end, out, ld);
  const Tiles tiles(x.stacked(), 6, 8);
  const int64_t count = x.tile_count(), pairs = up(count, 2) / 2;
  const auto tile_blocks = m.format == INT8 ? tile_blocks_of<true> : tile_blocks_of<false>;
  if (split_by_rows(me, x, m))
    tile_blocks(x, 2 * me.begin(pairs), std::min(count, 2 * me.end(pairs)), m, 0, blocks, out, ld);
  else
    tile_blocks(x, 0, count, m, begin, end, out, ld);
#else
  for (int64_t n = begin; n < end; n++) vector_block(x, m, n, out, ld);
#endif
}
