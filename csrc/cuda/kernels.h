// What the CUDA dispatch calls: device pointers to contiguous rows, checked by the caller, and the stream to use.
// Shapes as in csrc/cpu/kernels.h. Written and compiled, never run: see csrc/README.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../ragged.h"

namespace ds_stage2ab::cuda {

void pack_left(const int64_t* tokens, Ragged ragged, int64_t pad_id, int64_t* ids, int64_t* mask, cudaStream_t stream);

void pack_left_positions(const int64_t* positions, int64_t num_axes, int64_t num_tokens, Ragged ragged,
                         int64_t* packed, cudaStream_t stream);

void response_lengths(const int64_t* generated, int64_t num_rows, int64_t num_columns, int64_t stop_id,
                      int64_t* lengths, bool* stopped, cudaStream_t stream);

// ends [num_rows]: the running sum of the lengths, this row's included.
void gather_responses(const int64_t* generated, int64_t num_rows, int64_t num_columns, const int64_t* lengths,
                      const int64_t* ends, int64_t* tokens, cudaStream_t stream);

// Launch shape of all kernels: one thread per cell, in a loop over whatever exceeds the grid.
constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65535;

inline int num_blocks(int64_t num_cells) {
  const int64_t needed = (num_cells + kThreads - 1) / kThreads;
  return static_cast<int>(needed < kMaxBlocks ? needed : kMaxBlocks);
}

}  // namespace ds_stage2ab::cuda
