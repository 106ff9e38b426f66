#include "kernels.h"

namespace ds_stage2ab::cuda {
namespace {

__global__ void pack_left_positions_kernel(const int64_t* positions, int64_t num_axes, int64_t num_tokens,
                                           Ragged ragged, int64_t* packed) {
  const int64_t num_cells = num_axes * ragged.num_rows * ragged.width;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t cell = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; cell < num_cells; cell += stride) {
    const int64_t axis_and_row = cell / ragged.width;
    const int64_t* prompt = ragged.offsets + ragged.order[axis_and_row % ragged.num_rows];
    const int64_t source = prompt[1] - ragged.width + cell % ragged.width;
    const int64_t* axis = positions + axis_and_row / ragged.num_rows * num_tokens;
    packed[cell] = source >= prompt[0] ? axis[source] : 0;
  }
}

}  // namespace

void pack_left_positions(const int64_t* positions, int64_t num_axes, int64_t num_tokens, Ragged ragged,
                         int64_t* packed, cudaStream_t stream) {
  const int64_t num_cells = num_axes * ragged.num_rows * ragged.width;
  if (num_cells == 0) return;  // an empty grid is an error
  pack_left_positions_kernel<<<num_blocks(num_cells), kThreads, 0, stream>>>(positions, num_axes, num_tokens, ragged,
                                                                             packed);
}

}  // namespace ds_stage2ab::cuda
