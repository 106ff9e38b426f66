#include "kernels.h"

namespace ds_stage2ab::cuda {
namespace {

__global__ void pack_left_kernel(const int64_t* tokens, Ragged ragged, int64_t pad_id, int64_t* ids, int64_t* mask) {
  const int64_t num_cells = ragged.num_rows * ragged.width;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t cell = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; cell < num_cells; cell += stride) {
    const int64_t* prompt = ragged.offsets + ragged.order[cell / ragged.width];
    const int64_t source = prompt[1] - ragged.width + cell % ragged.width;
    const bool is_token = source >= prompt[0];
    ids[cell] = is_token ? tokens[source] : pad_id;
    mask[cell] = is_token;
  }
}

}  // namespace

void pack_left(const int64_t* tokens, Ragged ragged, int64_t pad_id, int64_t* ids, int64_t* mask, cudaStream_t stream) {
  const int64_t num_cells = ragged.num_rows * ragged.width;
  if (num_cells == 0) return;  // an empty grid is an error
  pack_left_kernel<<<num_blocks(num_cells), kThreads, 0, stream>>>(tokens, ragged, pad_id, ids, mask);
}

}  // namespace ds_stage2ab::cuda
