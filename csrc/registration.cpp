// The schema of every op, and what runs on the CPU. The meaning of each op stands in ds_stage2ab/ops/reference.py.
//
// No pybind and no PyInit: Python loads the library and finds the ops under torch.ops. Of the files that a CPU build
// compiles, this is the only one that includes torch, because that is what takes the time.

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/kernels.h"
#include "inputs.h"

namespace ds_stage2ab {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> pack_left(const Tensor& tokens, const Tensor& offsets, const Tensor& order, int64_t pad_id,
                                     int64_t width) {
  check_tensor("tokens", tokens, 1, tokens.device());
  check_tensor("offsets", offsets, 1, tokens.device());
  check_tensor("order", order, 1, tokens.device());
  const Tensor flat = tokens.contiguous(), bounds = offsets.contiguous(), rows = order.contiguous();
  const Ragged ragged = ragged_of(bounds, rows, width);
  check_ragged(ragged, flat.size(0));
  Tensor ids = flat.new_empty({ragged.num_rows, width}), mask = flat.new_empty({ragged.num_rows, width});
  cpu::pack_left(flat.const_data_ptr<int64_t>(), ragged, pad_id, ids.mutable_data_ptr<int64_t>(),
                 mask.mutable_data_ptr<int64_t>());
  return {ids, mask};
}

Tensor pack_left_positions(const Tensor& positions, const Tensor& offsets, const Tensor& order, int64_t width) {
  check_tensor("positions", positions, 2, positions.device());
  check_tensor("offsets", offsets, 1, positions.device());
  check_tensor("order", order, 1, positions.device());
  const Tensor flat = positions.contiguous(), bounds = offsets.contiguous(), rows = order.contiguous();
  const Ragged ragged = ragged_of(bounds, rows, width);
  check_ragged(ragged, flat.size(1));
  Tensor packed = flat.new_empty({flat.size(0), ragged.num_rows, width});
  cpu::pack_left_positions(flat.const_data_ptr<int64_t>(), flat.size(0), flat.size(1), ragged,
                           packed.mutable_data_ptr<int64_t>());
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> trim_responses(const Tensor& generated, int64_t stop_id) {
  check_tensor("generated", generated, 2, generated.device());
  const Tensor rows = generated.contiguous();
  const int64_t num_rows = rows.size(0), num_columns = rows.size(1);
  Tensor lengths = rows.new_empty({num_rows}), stopped = rows.new_empty({num_rows}, at::kBool);
  const int64_t num_kept =
      cpu::response_lengths(rows.const_data_ptr<int64_t>(), num_rows, num_columns, stop_id,
                            lengths.mutable_data_ptr<int64_t>(), stopped.mutable_data_ptr<bool>());
  Tensor tokens = rows.new_empty({num_kept});
  cpu::gather_responses(rows.const_data_ptr<int64_t>(), num_rows, num_columns, lengths.const_data_ptr<int64_t>(),
                        tokens.mutable_data_ptr<int64_t>());
  return {tokens, lengths, stopped};
}

}  // namespace
}  // namespace ds_stage2ab

TORCH_LIBRARY(ds_stage2ab, library) {
  library.def("pack_left(Tensor tokens, Tensor offsets, Tensor order, SymInt pad_id, SymInt width) -> (Tensor, Tensor)");
  library.def("pack_left_positions(Tensor positions, Tensor offsets, Tensor order, SymInt width) -> Tensor");
  library.def("trim_responses(Tensor generated, SymInt stop_id) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ds_stage2ab, CPU, library) {
  library.impl("pack_left", ds_stage2ab::pack_left);
  library.impl("pack_left_positions", ds_stage2ab::pack_left_positions);
  library.impl("trim_responses", ds_stage2ab::trim_responses);
}
