// Some of the ragged prompts in a flat buffer, and the rectangle that they are to fill. Plain C++.
#pragma once

#include <cstdint>
#include <string>

namespace ds_stage2ab {

struct Ragged {
  const int64_t* offsets;  // [num_prompts + 1], from 0 to the number of tokens
  int64_t num_prompts;
  const int64_t* order;  // [num_rows], the prompt of each row
  int64_t num_rows;
  int64_t width;  // columns of the rectangle
};

// What does not fit together, in the words of ds_stage2ab/ops/reference.py; empty if all does.
// Nothing may read the buffer before this has passed: the kernels trust every index.
inline std::string fault_of(const Ragged& ragged, int64_t num_tokens) {
  bool ascending = ragged.num_prompts >= 0 && ragged.offsets[0] == 0;
  for (int64_t prompt = 0; ascending && prompt < ragged.num_prompts; ++prompt) {
    ascending = ragged.offsets[prompt] <= ragged.offsets[prompt + 1];
  }
  if (!ascending || ragged.offsets[ragged.num_prompts] != num_tokens) {
    return "offsets must ascend from 0 to " + std::to_string(num_tokens) + ", the number of tokens";
  }
  if (ragged.width < 0) {
    return "width must not be negative, not " + std::to_string(ragged.width);
  }
  for (int64_t row = 0; row < ragged.num_rows; ++row) {
    const int64_t prompt = ragged.order[row];
    if (prompt < 0 || prompt >= ragged.num_prompts) {
      return "order names prompt " + std::to_string(prompt) + ", but there are " + std::to_string(ragged.num_prompts);
    }
  }
  for (int64_t row = 0; row < ragged.num_rows; ++row) {
    const int64_t prompt = ragged.order[row];
    const int64_t length = ragged.offsets[prompt + 1] - ragged.offsets[prompt];
    if (length > ragged.width) {
      return "prompt " + std::to_string(prompt) + " has " + std::to_string(length) + " tokens, more than width " +
             std::to_string(ragged.width);
    }
  }
  return "";
}

}  // namespace ds_stage2ab
