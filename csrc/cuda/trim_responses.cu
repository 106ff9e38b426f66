// Two kernels with a prefix sum between them, which the dispatch takes from torch: where a row's tokens go depends on
// the lengths of all rows before it.

#include "kernels.h"

namespace ds_stage2ab::cuda {
namespace {

// One thread per row: a row is short, and is read up to its stop only.
__global__ void response_lengths_kernel(const int64_t* generated, int64_t num_rows, int64_t num_columns,
                                        int64_t stop_id, int64_t* lengths, bool* stopped) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < num_rows; row += stride) {
    int64_t length = 0;
    while (length < num_columns && generated[row * num_columns + length] != stop_id) ++length;
    lengths[row] = length;
    stopped[row] = length < num_columns;
  }
}

__global__ void gather_responses_kernel(const int64_t* generated, int64_t num_rows, int64_t num_columns,
                                        const int64_t* lengths, const int64_t* ends, int64_t* tokens) {
  const int64_t num_cells = num_rows * num_columns;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t cell = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; cell < num_cells; cell += stride) {
    const int64_t row = cell / num_columns, column = cell % num_columns;
    if (column < lengths[row]) tokens[ends[row] - lengths[row] + column] = generated[cell];
  }
}

}  // namespace

void response_lengths(const int64_t* generated, int64_t num_rows, int64_t num_columns, int64_t stop_id,
                      int64_t* lengths, bool* stopped, cudaStream_t stream) {
  if (num_rows == 0) return;  // an empty grid is an error
  response_lengths_kernel<<<num_blocks(num_rows), kThreads, 0, stream>>>(generated, num_rows, num_columns, stop_id,
                                                                         lengths, stopped);
}

void gather_responses(const int64_t* generated, int64_t num_rows, int64_t num_columns, const int64_t* lengths,
                      const int64_t* ends, int64_t* tokens, cudaStream_t stream) {
  const int64_t num_cells = num_rows * num_columns;
  if (num_cells == 0) return;  // an empty grid is an error
  gather_responses_kernel<<<num_blocks(num_cells), kThreads, 0, stream>>>(generated, num_rows, num_columns, lengths,
                                                                          ends, tokens);
}

}  // namespace ds_stage2ab::cuda
