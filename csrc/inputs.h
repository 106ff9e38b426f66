// What the dispatch of every device asks of its tensors. Includes torch: for the registration files alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "ragged.h"

namespace ds_stage2ab {

inline void check_tensor(const char* name, const at::Tensor& tensor, int64_t num_axes, at::Device device) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kLong && tensor.dim() == num_axes, name, " must be int64 with ",
                    num_axes, " axes, not ", c10::getDtypeNames(tensor.scalar_type()).first, " with ", tensor.dim());
  TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), ", another tensor on ", device);
}

// The pointers into two contiguous tensors, which must outlive the result.
inline Ragged ragged_of(const at::Tensor& offsets, const at::Tensor& order, int64_t width) {
  return Ragged{offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, order.const_data_ptr<int64_t>(), order.size(0),
                width};
}

// `ragged` holds the host's pointers.
inline void check_ragged(const Ragged& ragged, int64_t num_tokens) {
  const std::string fault = fault_of(ragged, num_tokens);
  TORCH_CHECK_VALUE(fault.empty(), fault);
}

}  // namespace ds_stage2ab
