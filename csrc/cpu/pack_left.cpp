#include <algorithm>

#include "kernels.h"

namespace ds_stage2ab::cpu {

void pack_left(const int64_t* tokens, const Ragged& ragged, int64_t pad_id, int64_t* ids, int64_t* mask) {
  for (int64_t row = 0; row < ragged.num_rows; ++row) {
    const int64_t* prompt = ragged.offsets + ragged.order[row];
    const int64_t padding = ragged.width - (prompt[1] - prompt[0]);
    ids = std::fill_n(ids, padding, pad_id);
    mask = std::fill_n(mask, padding, 0);
    ids = std::copy(tokens + prompt[0], tokens + prompt[1], ids);
    mask = std::fill_n(mask, prompt[1] - prompt[0], 1);
  }
}

}  // namespace ds_stage2ab::cpu
