#include <algorithm>

#include "kernels.h"

namespace ds_stage2ab::cpu {

int64_t response_lengths(const int64_t* generated, int64_t num_rows, int64_t num_columns, int64_t stop_id,
                         int64_t* lengths, bool* stopped) {
  int64_t num_kept = 0;
  for (int64_t row = 0; row < num_rows; ++row, generated += num_columns) {
    lengths[row] = std::find(generated, generated + num_columns, stop_id) - generated;
    stopped[row] = lengths[row] < num_columns;
    num_kept += lengths[row];
  }
  return num_kept;
}

void gather_responses(const int64_t* generated, int64_t num_rows, int64_t num_columns, const int64_t* lengths,
                      int64_t* tokens) {
  for (int64_t row = 0; row < num_rows; ++row, generated += num_columns) {
    tokens = std::copy_n(generated, lengths[row], tokens);
  }
}

}  // namespace ds_stage2ab::cpu
