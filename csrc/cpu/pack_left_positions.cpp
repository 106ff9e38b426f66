#include <algorithm>

#include "kernels.h"

namespace ds_stage2ab::cpu {

void pack_left_positions(const int64_t* positions, int64_t num_axes, int64_t num_tokens, const Ragged& ragged,
                         int64_t* packed) {
  for (int64_t axis = 0; axis < num_axes; ++axis, positions += num_tokens) {
    for (int64_t row = 0; row < ragged.num_rows; ++row) {
      const int64_t* prompt = ragged.offsets + ragged.order[row];
      packed = std::fill_n(packed, ragged.width - (prompt[1] - prompt[0]), 0);
      packed = std::copy(positions + prompt[0], positions + prompt[1], packed);
    }
  }
}

}  // namespace ds_stage2ab::cpu
