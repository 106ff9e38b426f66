// What runs on CUDA. Compiled only with a CUDA torch and a toolkit; never run so far: see csrc/README.md.
//
// Offsets and order are checked on the host, as on the CPU, which waits for the stream once per call: they are small,
// and a wrong index would read foreign memory.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../inputs.h"
#include "kernels.h"

namespace ds_stage2ab {
namespace {

using at::Tensor;

void check_on_host(const Tensor& offsets, const Tensor& order, int64_t width, int64_t num_tokens) {
  const Tensor bounds = offsets.cpu(), rows = order.cpu();
  check_ragged(ragged_of(bounds, rows, width), num_tokens);
}

std::tuple<Tensor, Tensor> pack_left(const Tensor& tokens, const Tensor& offsets, const Tensor& order, int64_t pad_id,
                                     int64_t width) {
  check_tensor("tokens", tokens, 1, tokens.device());
  check_tensor("offsets", offsets, 1, tokens.device());
  check_tensor("order", order, 1, tokens.device());
  const c10::cuda::CUDAGuard guard(tokens.device());
  const Tensor flat = tokens.contiguous(), bounds = offsets.contiguous(), rows = order.contiguous();
  check_on_host(bounds, rows, width, flat.size(0));
  Tensor ids = flat.new_empty({rows.size(0), width}), mask = flat.new_empty({rows.size(0), width});
  cuda::pack_left(flat.const_data_ptr<int64_t>(), ragged_of(bounds, rows, width), pad_id,
                  ids.mutable_data_ptr<int64_t>(), mask.mutable_data_ptr<int64_t>(),
                  c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {ids, mask};
}

Tensor pack_left_positions(const Tensor& positions, const Tensor& offsets, const Tensor& order, int64_t width) {
  check_tensor("positions", positions, 2, positions.device());
  check_tensor("offsets", offsets, 1, positions.device());
  check_tensor("order", order, 1, positions.device());
  const c10::cuda::CUDAGuard guard(positions.device());
  const Tensor flat = positions.contiguous(), bounds = offsets.contiguous(), rows = order.contiguous();
  check_on_host(bounds, rows, width, flat.size(1));
  Tensor packed = flat.new_empty({flat.size(0), rows.size(0), width});
  cuda::pack_left_positions(flat.const_data_ptr<int64_t>(), flat.size(0), flat.size(1),
                            ragged_of(bounds, rows, width), packed.mutable_data_ptr<int64_t>(),
                            c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> trim_responses(const Tensor& generated, int64_t stop_id) {
  check_tensor("generated", generated, 2, generated.device());
  const c10::cuda::CUDAGuard guard(generated.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const Tensor rows = generated.contiguous();
  const int64_t num_rows = rows.size(0), num_columns = rows.size(1);
  Tensor lengths = rows.new_empty({num_rows}), stopped = rows.new_empty({num_rows}, at::kBool);
  cuda::response_lengths(rows.const_data_ptr<int64_t>(), num_rows, num_columns, stop_id,
                         lengths.mutable_data_ptr<int64_t>(), stopped.mutable_data_ptr<bool>(), stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const Tensor ends = lengths.cumsum(0);
  const int64_t num_kept = num_rows == 0 ? 0 : ends[num_rows - 1].item<int64_t>();
  Tensor tokens = rows.new_empty({num_kept});
  cuda::gather_responses(rows.const_data_ptr<int64_t>(), num_rows, num_columns, lengths.const_data_ptr<int64_t>(),
                         ends.const_data_ptr<int64_t>(), tokens.mutable_data_ptr<int64_t>(), stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {tokens, lengths, stopped};
}

}  // namespace
}  // namespace ds_stage2ab

TORCH_LIBRARY_IMPL(ds_stage2ab, CUDA, library) {
  library.impl("pack_left", ds_stage2ab::pack_left);
  library.impl("pack_left_positions", ds_stage2ab::pack_left_positions);
  library.impl("trim_responses", ds_stage2ab::trim_responses);
}
